"""One training loop for every stage, on Hugging Face accelerate: one process or many, CPU or GPU, killed and resumed.

In: a stage's configuration, rows of the index, the cache, weights to start from. Out, in one folder:

    <stage>.safetensors   the trained model with its configuration (checkpoint.py), and the same as JSON
    <stage>.metrics.csv   a row per epoch: epoch, loss, its parts, learning_rate, metric, seconds, images_per_second
    <stage>.resume.pt     while it runs: all that a restart needs; removed at the end
    tensorboard/<stage>/  the same metrics for TensorBoard, where it is installed

Every random number depends on the seed and the step alone, so a run that was killed and started again with the same
command ends, on the CPU, with the same bits as one that was not.
"""

import copy
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from accelerate import Accelerator, skip_first_batches
from accelerate.utils import GradientAccumulationPlugin, broadcast_object_list, is_tensorboard_available
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import Dataset
from tqdm import tqdm

from siimcovid.core.configuration import Training
from siimcovid.core.device import gpu_count
from siimcovid.core.errors import InputError
from siimcovid.core.files import atomic_path
from siimcovid.core.overrides import to_dict
from siimcovid.data.datasets import EpochSampler, loader
from siimcovid.models import checkpoints

#: Seconds of training after which the state is written again, at the next step.
SAVE_EVERY = 120.0


class NotFiniteError(RuntimeError):
    """The loss became NaN or infinite; the message names the images of the batch."""


@dataclass
class Progress:
    """Where a run is: all of it that is not a tensor."""

    epoch: int = 0
    batch: int = 0  # batches done in this epoch
    updates: int = 0  # of the weights
    loss: float = 0.0  # sum over this epoch's batches so far
    parts: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0  # this epoch so far, over all restarts
    waiting: float = 0.0  # of them, spent on data
    best: float = -math.inf
    best_epoch: int = -1
    history: list[dict[str, float]] = field(default_factory=list)


def learning_rate_factor(training: Training, update: int, updates_per_epoch: int) -> float:
    """The learning rate of an update as a fraction of the highest.

    `cosine` is the report's equation 1, (1/2 (1 + cos(t pi / T)) 0.95 + 0.05), with T the number of epochs and t the
    epoch of the last step, one step every `step_epochs` epochs. The report calls t "the scheduler step"; counted so, t
    would end at T / 2 and the floor it introduces would never be reached, so we count it in epochs.
    `one_cycle` rises linearly over the first fifth and falls as a cosine to zero (Smith and Topin 2017).
    """
    total = max(1, training.epochs * updates_per_epoch)
    warm = min(1.0, (update + 1) / training.warmup) if training.warmup else 1.0
    if training.schedule == "constant":
        return warm
    if training.schedule == "one_cycle":
        rise = 0.2 * total
        if update < rise:
            return warm * max(0.04, update / rise)
        return warm * 0.5 * (1 + math.cos(math.pi * min(1.0, (update - rise) / (total - rise))))
    epoch = update / updates_per_epoch
    if training.step_epochs:
        epoch = math.floor(epoch / training.step_epochs) * training.step_epochs
    cosine = 0.5 * (1 + math.cos(math.pi * epoch / training.epochs))
    return warm * (cosine * (1 - training.floor) + training.floor)


def make_optimizer(model: nn.Module, training: Training) -> torch.optim.Optimizer:
    """SGD, Adam or AdamW over the trainable parameters; weight decay on weights only, not on biases and norms."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": training.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if training.optimizer != "sgd":
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[training.optimizer]
        return kind(groups, lr=training.learning_rate)
    return torch.optim.SGD(
        groups,
        lr=training.learning_rate,
        momentum=training.momentum,
        nesterov=training.nesterov and training.momentum > 0,
    )


def train(
    stage: str,
    config: Any,
    model: nn.Module,
    dataset: Dataset,
    out: Path,
    *,
    seed: int = 0,
    sampling_weights: list[float] | None = None,
    evaluate: Callable[[nn.Module], float] | None = None,
    may_start_epoch: Callable[[float], bool] = lambda seconds: True,
    facts: dict[str, Any] | None = None,
    on_step: Callable[[Progress], None] = lambda progress: None,
) -> Path:
    """Train a model and return the path of its checkpoint; a finished one of the same settings is returned as is.

    Args:
        stage: name of the stage, a key of checkpoint.STAGES.
        config: the stage's configuration; `config.training` says how.
        model: with its starting weights.
        dataset: samples as in data.py.
        out: folder for everything written.
        seed: of the order of images, their augmentation and the model's own draws.
        chances: weight of each sample when images are drawn with replacement; None visits each once an epoch.
        evaluate: validation metric of a model, higher is better; with it the best epoch is kept, else the last.
        may_start_epoch: asked before each epoch but the first, with the seconds of the last; False ends training.
        facts: written into the JSON beside the checkpoint.
        on_step: called after each batch.

    Raises:
        NotFiniteError: the loss was NaN or infinite.
        InputError: the dataset is empty, or `out` holds an unfinished run with other settings.
    """
    training: Training = config.training
    out = Path(out)
    final, resume = out / f"{stage}.safetensors", out / f"{stage}.resume.pt"
    settings = json.dumps({"config": to_dict(config), "seed": seed, "images": len(dataset)}, sort_keys=True)
    if len(dataset) == 0:
        raise InputError(f"no images to train stage {stage} on")
    if final.is_file() and not resume.is_file() and _finished(final) == settings:
        return final

    accelerator = Accelerator(
        cpu=not gpu_count(),  # see processes.launched_as
        mixed_precision="fp16" if gpu_count() else "no",  # bf16 autocast on CPUs is slower, not faster
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        step_scheduler_with_optimizer=False,
        log_with="tensorboard" if is_tensorboard_available() else None,
        project_dir=out / "tensorboard",
    )
    accelerator.init_trackers(stage)
    if accelerator.is_main_process:
        for torn in out.glob(f".{stage}.*"):  # by a run that was killed while it wrote
            torn.unlink()
    images_per_batch = training.batch * accelerator.num_processes
    accelerator.gradient_accumulation_steps = max(1, round(training.nominal_batch / images_per_batch))
    sampler = EpochSampler(len(dataset), seed, sampling_weights)
    batches = loader(dataset, training.batch, sampler, drop_last=len(dataset) >= images_per_batch)
    updates_per_epoch = max(1, len(dataset) // images_per_batch // accelerator.gradient_accumulation_steps)
    optimizer = make_optimizer(model, training)
    schedule = LambdaLR(optimizer, lambda update: learning_rate_factor(training, update, updates_per_epoch))
    averaged = None
    if training.ema:
        averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(training.ema), use_buffers=True)
        averaged.to(accelerator.device)
    model, optimizer, batches = accelerator.prepare(model, optimizer, batches)
    plain = accelerator.unwrap_model(model)
    progress, best_state = Progress(), None

    if resume.is_file():
        state = torch.load(resume, map_location="cpu", weights_only=True)
        if state["settings"] != settings or state["processes"] != accelerator.num_processes:
            raise InputError(
                f"{resume} is of a run with other settings or another number of processes ({state['processes']}); "
                "finish it with those, or remove the file"
            )
        plain.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        if averaged is not None:
            averaged.load_state_dict(state["averaged"])
        if accelerator.scaler is not None and state["scaler"]:
            accelerator.scaler.load_state_dict(state["scaler"])
        progress, best_state = Progress(**state["progress"]), state["best"]

    def save_resume() -> None:
        if not accelerator.is_main_process:
            return
        with atomic_path(resume) as temporary:
            torch.save(
                {
                    "settings": settings,
                    "processes": accelerator.num_processes,
                    "progress": vars(progress),
                    "model": plain.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "schedule": schedule.state_dict(),
                    "averaged": averaged.state_dict() if averaged is not None else None,
                    "scaler": accelerator.scaler.state_dict() if accelerator.scaler is not None else None,
                    "best": best_state,
                },
                temporary,
            )

    bar = tqdm(
        desc=f"train {stage}",
        total=training.epochs * len(batches),
        initial=progress.epoch * len(batches) + progress.batch,
        disable=not accelerator.is_main_process,
        unit="batch",
        mininterval=2,
    )
    saved = time.monotonic()
    while progress.epoch < training.epochs:
        if progress.batch == 0 and progress.history:
            if evaluate and training.patience and progress.epoch - 1 - progress.best_epoch >= training.patience:
                break
            # clocks differ: the main process decides for all, or some would wait for the others for ever
            go_on = broadcast_object_list([may_start_epoch(progress.history[-1]["seconds"])])[0]
            if not go_on:
                break
        sampler.epoch = progress.epoch
        started, before = time.monotonic(), progress.seconds
        waiting = time.monotonic()
        left = skip_first_batches(batches, progress.batch) if progress.batch else batches
        model.train()
        for batch in left:
            progress.waiting += time.monotonic() - waiting
            # A model's own draws (dropout, sampled proposals) depend on the step, not on what was drawn before. Of P
            # processes number p has every P-th batch, so the draws are those of one process that takes them in turn.
            number = progress.batch * accelerator.num_processes + accelerator.process_index
            torch.manual_seed(hash((seed, progress.epoch, number)) & 0x7FFFFFFF)
            with accelerator.accumulate(model):
                with accelerator.autocast():
                    parts: dict[str, Tensor] = model(batch)
                    loss = sum(parts.values())
                if not torch.isfinite(loss.detach()):
                    raise NotFiniteError(
                        f"the loss of stage {stage} is {loss.item()} in epoch {progress.epoch + 1}, images "
                        f"{', '.join(batch['image_ids'])}; lower {stage}.training.learning_rate or look at these images"
                    )
                accelerator.backward(loss)
                if accelerator.sync_gradients and training.clip_norm:
                    accelerator.clip_grad_norm_(model.parameters(), training.clip_norm)
                optimizer.step()
                optimizer.zero_grad()
            if accelerator.sync_gradients:
                schedule.step()
                progress.updates += 1
                if averaged is not None:
                    averaged.update_parameters(plain)
            progress.batch += 1
            progress.loss += loss.item()
            for name, part in parts.items():
                progress.parts[name] = progress.parts.get(name, 0.0) + part.item()
            progress.seconds = before + time.monotonic() - started
            shown = {"epoch": progress.epoch + 1, "loss": f"{progress.loss / progress.batch:.3f}"}
            if progress.best_epoch >= 0:
                shown |= {"metric": f"{progress.history[-1]['metric']:.3f}", "best": f"{progress.best:.3f}"}
            bar.set_postfix(shown, refresh=False)
            bar.update()
            if accelerator.sync_gradients and time.monotonic() - saved > SAVE_EVERY:
                save_resume()  # between updates, so no half-summed gradient is lost
                saved = time.monotonic()
            on_step(progress)
            waiting = time.monotonic()

        chosen = averaged.module if averaged is not None else plain
        row = {
            "epoch": progress.epoch + 1,
            "loss": progress.loss / progress.batch,
            **{name: value / progress.batch for name, value in progress.parts.items()},
            "learning_rate": schedule.get_last_lr()[0],
        }
        row["metric"] = evaluate(chosen) if evaluate else None
        row |= {
            "seconds": progress.seconds,
            "images_per_second": progress.batch * images_per_batch / progress.seconds,
            "waiting_share": progress.waiting / progress.seconds,
        }
        if evaluate and row["metric"] > progress.best:
            progress.best, progress.best_epoch = row["metric"], progress.epoch
            best_state = copy.deepcopy(chosen.state_dict())
        progress = Progress(
            epoch=progress.epoch + 1,
            updates=progress.updates,
            best=progress.best,
            best_epoch=progress.best_epoch,
            history=[*progress.history, row],
        )
        if accelerator.is_main_process:
            with atomic_path(out / f"{stage}.metrics.csv") as temporary:
                pd.DataFrame(progress.history).to_csv(temporary, index=False)
        accelerator.log({name: value for name, value in row.items() if value is not None}, step=progress.epoch)
        save_resume()
        saved = time.monotonic()

    bar.close()
    result = averaged.module if averaged is not None else plain
    if best_state is not None:
        result.load_state_dict(best_state)
    if accelerator.is_main_process:
        checkpoints.save(
            final, result, stage, config, {"settings": settings, "epochs": progress.history, **(facts or {})}
        )
        resume.unlink(missing_ok=True)
    for tracker in accelerator.trackers:  # not end_training, which would end the processes' group for the next stage
        tracker.finish()
    accelerator.wait_for_everyone()
    accelerator.free_memory()
    return final


def _finished(final: Path) -> str | None:
    """The settings of a finished run, from the JSON beside its checkpoint."""
    try:
        return json.loads(final.with_suffix(".json").read_text(encoding="utf-8")).get("settings")
    except (OSError, ValueError):
        return None
