"""One training loop for every stage: one process or many, CPU or GPU, killed, paused and resumed.

In: a stage's configuration, a model with its starting weights, samples. Out, in one folder:

    <stage>.safetensors   the trained model with its configuration (checkpoints.py), and the same as JSON, with the
                          identity of the training, the epochs' metrics and "finished"
    <stage>.metrics.csv   a row per epoch, see epoch_log.py
    <stage>.resume.pt     while it runs, and after a pause: all that a restart needs, see training_state.py
    tensorboard/<stage>/  the same metrics for TensorBoard, where it is installed

Every random number depends on the seed and the step alone, so a run that was killed and started again with the same
command ends, on the CPU, with the same bits as one that was not.
"""

import copy
import math
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object, is_tensorboard_available, send_to_device
from torch import Tensor, nn
from torch.utils.data import Dataset

from siimcovid.core.configuration import Training
from siimcovid.core.device import gpu_count
from siimcovid.core.errors import InputError
from siimcovid.core.files import atomic_path
from siimcovid.core.overrides import to_dict
from siimcovid.core.progress import progress_bar
from siimcovid.data.datasets import loader
from siimcovid.data.samplers import EpochSampler
from siimcovid.models import checkpoints
from siimcovid.training import epoch_log
from siimcovid.training.learning_rate import make_schedule
from siimcovid.training.optimizer import make_average, make_optimizer
from siimcovid.training.step_batches import StepBatches
from siimcovid.training.training_identity import is_finished
from siimcovid.training.training_state import Progress, TrainingState, read_state

#: Seconds of training after which the state is written again, at the next update.
SAVE_EVERY = 120.0


class NotFiniteError(RuntimeError):
    """The loss became NaN or infinite; the message names the images of the batch."""


def autocast_type(device: torch.device) -> torch.dtype | None:
    """The type of mixed precision: float16 on a GPU; None on the CPU, where bfloat16 is slower, not faster."""
    return torch.float16 if device.type == "cuda" else None


def print_warning(text: str) -> None:
    """What `train` does with what went wrong and could be mended: print it to stderr."""
    print(text, file=sys.stderr, flush=True)


def train(
    stage: str,
    config: Any,
    model: nn.Module,
    dataset: Dataset,
    out: Path,
    *,
    seed: int = 0,
    identity: Mapping[str, Any] | None = None,
    sampling_weights: list[float] | None = None,
    evaluate: Callable[[nn.Module], float] | None = None,
    may_start_epoch: Callable[[float], bool] = lambda seconds: True,
    pause: bool = False,
    resume_from: Path | None = None,
    facts: dict[str, Any] | None = None,
    on_step: Callable[[Progress], None] = lambda progress: None,
    warn: Callable[[str], None] = print_warning,
    complete: Callable[[nn.Module], Any] | None = None,
) -> Path:
    """Train a model and return the path of its checkpoint; a finished one of the same identity is returned as is.

    Args:
        stage: name of the stage, a key of checkpoints.STAGES.
        config: the stage's configuration; `config.training` says how.
        model: with its starting weights.
        dataset: samples as in datasets.py.
        out: folder for everything written.
        seed: of the order of images, their augmentation and the model's own draws.
        identity: of the training, see training_identity.py; by default configuration, seed and number of images.
        sampling_weights: weight of each sample when images are drawn with replacement; None visits each once an epoch.
        evaluate: validation metric of a model, higher is better; with it the best epoch is kept, else the last. NaN is
            taken for no metric.
        may_start_epoch: asked before each epoch but the first, with the seconds of the last; False ends training.
        pause: training that `may_start_epoch` ends is to go on later: its state stays beside the checkpoint, whose JSON
            says `"finished": false`. Without it what there is then counts as finished.
        resume_from: a folder, which may be read-only, in which an earlier run with `pause` left off.
        facts: written into the JSON beside the checkpoint.
        on_step: called after each step.
        warn: called with a sentence about what went wrong without ending the training.
        complete: called in every process with the finished model before it is written, to fill what is not trained; it
            returns the configuration that is written, by default `config`.

    A loss that is not finite takes training back to the last state that was: with mixed precision, to go on in float32,
    else to end there with the best weights so far.

    Raises:
        NotFiniteError: the loss was NaN or infinite before there was anything to keep.
        InputError: the dataset is empty.
    """
    if len(dataset) == 0:
        raise InputError(f"no images to train stage {stage} on")
    out = Path(out)
    if identity is None:
        identity = {"stage": stage, "config": to_dict(config), "seed": seed, "images": len(dataset)}
    final, resume = out / f"{stage}.safetensors", out / f"{stage}.resume.pt"
    if is_finished(final, identity) and not resume.is_file():
        return final
    if resume_from is not None and is_finished(Path(resume_from) / final.name, identity):
        for name in (f"{stage}.metrics.csv", final.with_suffix(".json").name, final.name):
            if (source := Path(resume_from) / name).is_file():
                with atomic_path(out / name) as temporary:
                    shutil.copyfile(source, temporary)
        return final
    loop = TrainingLoop(stage, config, model, dataset, out, seed, identity, sampling_weights, on_step, warn)
    loop.resume(resume_from)
    finished = loop.run(evaluate, may_start_epoch, pause)
    loop.finish(finished, facts or {}, complete)
    return final


class TrainingLoop:
    """A training of one stage: `run` is the loop over epochs, `train_epoch` the recipe of one."""

    def __init__(
        self,
        stage: str,
        config: Any,
        model: nn.Module,
        dataset: Dataset,
        out: Path,
        seed: int,
        identity: Mapping[str, Any],
        sampling_weights: list[float] | None,
        on_step: Callable[[Progress], None],
        warn: Callable[[str], None],
    ):
        self.stage, self.config, self.out, self.seed, self.identity = stage, config, out, seed, identity
        self.training: Training = config.training
        self.on_step, self.warn = on_step, warn
        self.accelerator = Accelerator(
            cpu=not gpu_count(),  # see device.launched_as
            mixed_precision="no",  # autocast and its scaler are here, so that they can be switched off on the way
            log_with="tensorboard" if is_tensorboard_available() else None,
            project_dir=out / "tensorboard",
        )
        self.device, self.processes = self.accelerator.device, self.accelerator.num_processes
        self.main = self.accelerator.is_main_process
        self.accelerator.init_trackers(stage)
        tickets = EpochSampler(len(dataset), seed, sampling_weights)
        self.batches = StepBatches(tickets, self.training.batch, self.accelerator.process_index, self.processes)
        self.images_per_step = self.batches.images_per_step
        self.loader = loader(dataset, batches=self.batches)
        self.steps = len(self.batches)  # in an epoch
        nominal = self.training.nominal_batch or self.training.batch
        self.accumulate = max(1, round(nominal / self.images_per_step))  # steps per update of the weights
        model = model.to(self.device)
        optimizer = make_optimizer(model, self.training)
        schedule = make_schedule(optimizer, self.training, math.ceil(self.steps / self.accumulate))
        averaged = make_average(model, self.training, self.device)
        scaler = torch.amp.GradScaler(self.device.type, enabled=autocast_type(self.device) is torch.float16)
        self.model = self.accelerator.prepare_model(model)
        self.state = TrainingState(model, optimizer, schedule, averaged, scaler)
        self.resume_file = out / f"{stage}.resume.pt"
        self.saved = time.monotonic()

    # Restarts

    def resume(self, resume_from: Path | None) -> None:
        """Go on where an earlier run of the same identity left off, here or in another folder; else begin."""
        if self.main:
            for torn in self.out.glob(f".{self.stage}.*"):  # by a run that was killed while it wrote
                torn.unlink(missing_ok=True)
        places = [self.resume_file]
        if resume_from is not None:
            places.append(Path(resume_from) / self.resume_file.name)
        for path in places:
            if not path.is_file():
                continue
            try:
                content, fault = read_state(path, self.identity), ""
            except InputError as error:
                content, fault = None, str(error)
            self.accelerator.wait_for_everyone()
            if content is not None:
                self.restore(content)
                break
            aside = ""
            if path == self.resume_file:
                old = path.with_name(f"{self.stage}.resume.old.pt")
                aside = f"; it is now {old.name}"
                if self.main:
                    path.replace(old)
            self.report(f"{fault}. Stage {self.stage} is trained anew{aside}")
        if self.state.progress.updates or self.mixed:  # to go back to, and where another folder's state goes on
            self.save()

    def restore(self, content: Mapping[str, Any]) -> None:
        """Take over a state that was read from a file."""
        self.state.restore(content, self.images_per_step)
        self.state.optimizer.zero_grad()
        if self.state.progress.float32:
            self.state.scaler = torch.amp.GradScaler(self.device.type, enabled=False)

    def save(self) -> None:
        """Write the state, unless the weights are no longer finite: the file holds the last state that is good."""
        self.saved = time.monotonic()
        if self.main and self.state.is_finite():
            self.state.save(self.resume_file, self.identity, self.images_per_step)

    def report(self, text: str) -> None:
        """Give a warning, once for all processes."""
        if self.main:
            self.warn(text)

    # The loop

    @property
    def mixed(self) -> bool:
        """Whether the model runs in mixed precision."""
        return autocast_type(self.device) is not None and not self.state.progress.float32

    def run(
        self, evaluate: Callable[[nn.Module], float] | None, may_start_epoch: Callable[[float], bool], pause: bool
    ) -> bool:
        """Train epoch after epoch; returns False where that is to go on in a later run."""
        while self.state.progress.epoch < self.training.epochs:
            progress = self.state.progress
            if progress.batch == 0 and progress.history:
                if self.stopped_improving(progress):
                    return True
                # clocks differ: the main process decides for all, or some would wait for the others for ever
                if not broadcast_object_list([may_start_epoch(progress.history[-1]["seconds"])])[0]:
                    return not pause
            try:
                self.train_epoch()
                ended = time.monotonic()
                metric = self.validate(evaluate)
            except NotFiniteError as error:
                if not self.recover(error):
                    return True
            else:
                self.end_epoch(metric, ended)
        return True

    def stopped_improving(self, progress: Progress) -> bool:
        """Whether the validation metric had no better value for as many epochs as the configuration waits."""
        if not self.training.patience or progress.best_epoch < 0:
            return False
        return progress.epoch - 1 - progress.best_epoch >= self.training.patience

    def train_epoch(self) -> None:
        """The rest of the epoch that `state.progress` stands in. Raises NotFiniteError."""
        progress = self.state.progress
        started, before = time.monotonic(), progress.seconds
        waiting = started
        self.batches.tickets.epoch, self.batches.first = progress.epoch, progress.batch
        self.model.train()
        title, bar_options = f"{self.stage} {progress.epoch + 1}/{self.training.epochs}", {"initial": progress.batch}
        bar_options |= {"leave": False, "disable": None if self.main else True}
        bar = progress_bar(self.loader, title, "batch", self.steps, **bar_options)
        for batch in bar:
            batch = send_to_device(batch, self.device, non_blocking=True)
            progress.waiting += time.monotonic() - waiting
            self.seed_step()
            group = self.update_group(progress.batch)
            last = progress.batch + 1 == group.stop
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                loss, parts = self.backward(batch, len(group))
            if last:
                self.update()
            progress.batch += 1
            progress.loss += loss
            for name, part in parts.items():
                progress.parts[name] = progress.parts.get(name, 0.0) + part
            progress.seconds = before + time.monotonic() - started
            bar.set_postfix(loss=f"{progress.loss / progress.batch:.3f}", refresh=False)
            if last and time.monotonic() - self.saved > SAVE_EVERY:
                self.save()  # between updates, so no half-summed gradient is lost
            self.on_step(progress)
            waiting = time.monotonic()

    def seed_step(self) -> None:
        """Make a model's own draws (dropout, sampled proposals) depend on the step, not on what was drawn before.

        Of P processes number p draws in step s what one process would in step s P + p.
        """
        progress = self.state.progress
        number = progress.batch * self.processes + self.accelerator.process_index
        torch.manual_seed(hash((self.seed, progress.epoch, number)) & 0x7FFFFFFF)

    def update_group(self, step: int) -> range:
        """The steps of an epoch whose gradients are summed with this one's; the last group may have fewer."""
        start = step - step % self.accumulate
        return range(start, min(start + self.accumulate, self.steps))

    def backward(self, batch: dict[str, Any], summed: int) -> tuple[float, dict[str, float]]:
        """Forward and backward of this process's part of a step; returns the loss and its parts.

        summed: number of steps in the update, over which the gradient is averaged. Raises NotFiniteError, in all
        processes where it is so in one, with the loss and the images of one where it is.
        """
        with torch.autocast(self.device.type, dtype=autocast_type(self.device), enabled=self.mixed):
            parts: dict[str, Tensor] = self.model(batch)
            loss = sum(parts.values())
        finite = torch.isfinite(loss.detach())
        if self.processes > 1:
            finite = self.accelerator.reduce(finite.float(), "sum") == self.processes
        if not finite:
            found = gather_object([(loss.item(), list(batch["image_ids"]))])
            value, images = next(entry for entry in found if not math.isfinite(entry[0]))
            raise NotFiniteError(
                f"the loss of stage {self.stage} is {value} in epoch {self.state.progress.epoch + 1}, images "
                f"{', '.join(images)}; lower {self.stage}.training.learning_rate or look at these images"
            )
        mean = loss / summed
        if (weight := self.batches.weight(len(batch["image_ids"]))) != 1:
            mean = mean * weight
        self.state.scaler.scale(mean).backward()
        return loss.item(), {name: part.item() for name, part in parts.items()}

    def update(self) -> None:
        """Clip the gradients, change the weights, and move the schedule and the averaged weights on.

        In mixed precision an update whose gradients overflow is left out: the scaler lowers its factor, and neither
        the schedule nor the average counts it.
        """
        state = self.state
        state.scaler.unscale_(state.optimizer)
        if self.training.clip_norm:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.training.clip_norm)
        factor = state.scaler.get_scale()
        state.scaler.step(state.optimizer)
        state.scaler.update()
        state.optimizer.zero_grad()
        if state.scaler.get_scale() < factor:
            return
        state.schedule.step()
        state.progress.updates += 1
        if state.averaged is not None:
            state.averaged.update_parameters(state.model)

    def validate(self, evaluate: Callable[[nn.Module], float] | None) -> float | None:
        """The metric of the model as it is, the same in all processes; None where there is none."""
        if self.processes > 1:  # running statistics are each process's own; the main process's are kept
            for module in (self.state.model, self.state.result):
                for buffer in module.buffers():
                    torch.distributed.broadcast(buffer, 0)
        if not self.state.is_finite():
            raise NotFiniteError(
                f"the weights of stage {self.stage} are not finite after epoch {self.state.progress.epoch + 1}; "
                f"lower {self.stage}.training.learning_rate"
            )
        if evaluate is None:
            return None
        metric = broadcast_object_list([float(evaluate(self.state.result))])[0]
        return metric if math.isfinite(metric) else None  # NaN: the fold has nothing to measure by

    def end_epoch(self, metric: float | None, ended: float) -> None:
        """Keep what is best so far, write the epoch's row and line, and save the state.

        ended: when its training had ended (time.monotonic) and its validation began.
        """
        state = self.state
        rate = state.schedule.get_last_lr()[0]
        row = epoch_log.epoch_row(state.progress, rate, metric, self.images_per_step)
        if metric is not None and metric > state.progress.best:
            state.progress.best, state.progress.best_epoch = metric, state.progress.epoch
            state.best = copy.deepcopy(state.result.state_dict())
        elif state.progress.best_epoch < 0:  # without a metric the last epoch is the best
            state.best = copy.deepcopy(state.result.state_dict())
        state.progress = state.progress.next_epoch(row)
        if self.main:
            epoch_log.write_metrics(state.progress.history, self.out / f"{self.stage}.metrics.csv")
            took = row["seconds"] + time.monotonic() - ended
            print(epoch_log.epoch_line(self.stage, state.progress, self.training.epochs, took), flush=True)
        self.accelerator.log({name: value for name, value in row.items() if value is not None}, step=row["epoch"])
        self.save()

    def recover(self, error: NotFiniteError) -> bool:
        """Go back to the last good state: True to go on from it in float32, False to end there.

        Raises the error where there is no state, or no whole epoch to keep.
        """
        self.accelerator.wait_for_everyone()
        mixed = self.mixed
        if not self.resume_file.is_file():
            raise error
        self.restore(read_state(self.resume_file, self.identity))
        self.accelerator.wait_for_everyone()  # all have read the file, before one replaces or removes it
        progress = self.state.progress
        if mixed:
            progress.float32 = True
            self.state.scaler = torch.amp.GradScaler(self.device.type, enabled=False)
            self.report(f"{error}. Stage {self.stage} goes on in float32 from epoch {progress.epoch + 1}")
            self.save()
            return True
        if not progress.history:
            raise error
        best = progress.best_epoch + 1 or len(progress.history)
        self.report(f"{error}. Stage {self.stage} ends there and keeps the weights of epoch {best}")
        return False

    def finish(self, finished: bool, facts: Mapping[str, Any], complete: Callable[[nn.Module], Any] | None) -> None:
        """Write the checkpoint of the best epoch; `finished` False leaves the state beside it for a later run."""
        result, progress = self.state.result, self.state.progress
        if self.state.best is not None:
            result.load_state_dict(self.state.best)
        config = complete(result) if complete is not None and finished else self.config
        if self.main:
            facts = {"identity": self.identity, "finished": finished, "epochs": progress.history, **facts}
            checkpoints.save(self.out / f"{self.stage}.safetensors", result, self.stage, config, facts)
            if finished:
                self.resume_file.unlink(missing_ok=True)
        for tracker in self.accelerator.trackers:  # not end_training, which would end the processes' group
            tracker.finish()
        self.accelerator.wait_for_everyone()
        self.accelerator.free_memory()
