"""How long the trainings take side by side, and whether that is sooner than one after the other.

In: the seconds of each model's training with the whole machine (step_forecast.py). Out: the seconds of the queue, and
how many models to train at a time. This module imports no torch.
"""

import heapq
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from siimcovid.core.stage_names import stage_of

#: The step in which models are trained side by side; one after the other each has a step of its own, "fit rcnn".
QUEUE = "fit"

#: How much more work two cores do with a model each than with both on one (1.20 to 1.45 in three rounds, see
#: docs/benchmarks.md), and two GPUs: a guess at what two processes lose that add up their gradients at every step.
CPU_GAIN, GPU_GAIN = 1.33, 1.1

#: Seconds in which a process imports what a training needs, with room for slower machines: here it is 2.3 of the
#: processor for any and 1.5 more for YOLOv5.
START = 6.0


@dataclass(frozen=True)
class Machine:
    """What trainings can share. cores: that one uses on the CPU. gpus: that can be used."""

    cores: int = 1
    gpus: int = 0

    def jobs_at_most(self) -> int:
        """How many models can be trained at a time: one on each GPU; without one, one on each core."""
        return max(1, self.gpus or self.cores)

    def slowdown(self, jobs: int) -> float:
        """How many times longer a training takes as one of `jobs` than alone with the whole machine."""
        if jobs == 1:
            return 1.0
        if self.gpus:
            return max(1.0, self.gpus / GPU_GAIN)
        return max(1.0, self.cores / max(1, self.cores // jobs) / CPU_GAIN)


def is_training(step: str) -> bool:
    """Whether a step trains models: "fit rcnn", or the queue."""
    return step.partition(" ")[0] == QUEUE


def in_order(seconds: Mapping[str, float], waits: Mapping[str, str] | None = None) -> list[str]:
    """The order in which a queue takes models (model -> seconds): the first of each stage before the second of any, of
    those what others wait for (waits: model -> the one that it starts from), and then the longest, so that the places
    have work to the end."""
    awaited = {*(waits or {}).values()}

    def place(name: str) -> tuple[int, bool, float]:
        return int(name.removeprefix(stage_of(name)).strip(".") or 0), name not in awaited, -seconds[name]

    return sorted(seconds, key=place)


def queue_seconds(seconds: Iterable[float], busy: Iterable[float]) -> float:
    """Seconds in which trainings are done that begin in this order, each as soon as a place is free.

    busy: for each place, the seconds for which another training has it.
    """
    free, last = sorted(busy), 0.0
    for each in seconds:
        end = heapq.heappop(free) + each
        heapq.heappush(free, end)
        last = max(last, end)
    return last


def latest_end(left: float, busy: Sequence[float], waiting: Sequence[float]) -> float:
    """The latest that a training may end, of `left` seconds, so that those that wait end within them too.

    busy: for each of the other places, the seconds for which it is taken. waiting: the seconds of the others, in order.
    """
    low, high = 0.0, max(0.0, left)
    if queue_seconds(waiting, [high, *busy]) <= left:
        return high
    while high - low > 0.1:
        middle = (low + high) / 2
        low, high = (middle, high) if queue_seconds(waiting, [middle, *busy]) <= left else (low, middle)
    return low


def beside_others(seconds: Mapping[str, float], machine: Machine, jobs: int) -> dict[str, float]:
    """The seconds of trainings (model -> alone with the whole machine) as `jobs` at a time; 0 stays 0."""
    slowdown = machine.slowdown(jobs)
    return {name: each * slowdown + START if each else 0.0 for name, each in seconds.items()}


def of_queue(
    seconds: Mapping[str, float], machine: Machine, jobs: int, waits: Mapping[str, str] | None = None
) -> float:
    """Seconds of a queue of trainings (model -> alone with the whole machine), `jobs` at a time.

    waits: model -> the one that it starts from; on the CPU, one for which all others wait has the whole machine.
    """
    longer = {name: each for name, each in beside_others(seconds, machine, jobs).items() if each}
    waiting, ends, free = in_order(longer, waits), {}, [0.0] * jobs
    while waiting:
        now = heapq.heappop(free)
        held = {name for name, other in (waits or {}).items() if other in waiting or ends.get(other, now) > now}
        name = next((name for name in waiting if name not in held), None)
        if name is None:  # the place waits until another training has ended
            heapq.heappush(free, min(end for end in ends.values() if end > now))
            continue
        waiting.remove(name)
        alone = not machine.gpus and len(held) == len(waiting) > 0 and all(end <= now for end in ends.values())
        ends[name] = now + (seconds[name] + START if alone else longer[name])
        heapq.heappush(free, ends[name])
    return max(ends.values(), default=0.0)


def jobs_to_try(machine: Machine, models: Collection[str], asked: int = 0) -> Iterator[int]:
    """The numbers of models at a time that come into question for training these.

    asked: the only one, as far as the machine and the models allow it; 0 leaves the choice.
    """
    most = max(1, min(machine.jobs_at_most(), len(models)))
    if asked:
        yield min(asked, most)
        return
    yield 1
    if not machine.gpus:
        yield from range(2, most + 1)
    elif most > 1:
        yield most
