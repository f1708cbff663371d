"""Which images a process sees in which step: every step's batch, shared among the processes.

The batch of the configuration is that of all processes together, so a stage sees the same images in the same steps
whatever the number of GPUs. Of 15 images on two processes one has 8 and the other 7; `TrainingLoop` weighs their losses
accordingly.
"""

from collections.abc import Iterator

from torch.utils.data import Sampler

from siimcovid.data.samplers import EpochSampler


class StepBatches(Sampler[list[int]]):
    """Tickets (see EpochSampler) of this process's part of every step of an epoch.

    An epoch has as many steps as there are whole batches; what is left over is left out. Images fewer than a batch are
    one step.

    Args:
        tickets: the epoch's images in order.
        batch: images per step, of all processes together. One image per process is the least.
        process, processes: which of how many this is.
    """

    def __init__(self, tickets: EpochSampler, batch: int, process: int = 0, processes: int = 1):
        self.tickets, self.process, self.processes = tickets, process, processes
        self.images_per_step = max(batch, processes)
        self.first = 0  # the step to begin with, where the ones before were done by a run that was interrupted

    def __len__(self) -> int:
        return max(1, len(self.tickets) // self.images_per_step)

    def __iter__(self) -> Iterator[list[int]]:
        order = list(self.tickets)
        for step in range(self.first, len(self)):
            yield self.share(order[step * self.images_per_step : (step + 1) * self.images_per_step])

    def share(self, images: list[int]) -> list[int]:
        """This process's part of a step's images: consecutive ones, the first processes one more where it is uneven."""
        if len(images) < self.processes:  # every process must take part in a step
            return [images[self.process % len(images)]]
        size, more = divmod(len(images), self.processes)
        start = self.process * size + min(self.process, more)
        return images[start : start + size + (self.process < more)]

    def weight(self, mine: int) -> float:
        """Factor of the mean loss of `mine` images, so that the processes' average is the mean over all images."""
        return mine * self.processes / max(min(self.images_per_step, len(self.tickets)), self.processes)
