"""The trainings of a week as jobs, and how they are given to GPUs: see week_schedule.py.

In: a preset and the images a second of each stage (gpu_throughput.py). Out: Jobs with their hours, and Entries, which
say what runs where from when to when.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from siimcovid.core.configuration import Preset, validation_passes
from siimcovid.core.stage_names import DETECTORS, stage_of
from siimcovid.kernel import queue_forecast
from siimcovid.kernel.gpu_throughput import Throughput
from siimcovid.kernel.queue_forecast import GPU_GAIN
from siimcovid.kernel.run_plan import plan_of_preset

#: Images that pretraining runs on: all of NIH ChestX-ray14, and those of RSNA's 26,684 that have boxes.
NIH_IMAGES, RSNA_IMAGES = 112_120, 6012

#: The competition's images: in train/, of them annotated and no copy of another (four of five folds are 4,900), in the
#: visible test/, and in the hidden one, which is as large as train/.
TRAIN_IMAGES, ANNOTATED_IMAGES, VISIBLE_IMAGES, HIDDEN_IMAGES = 6334, 6125, 1263, 6334

#: Bytes of one of the competition's images, and a second that the kernel's mounted input folder delivers.
IMAGE_BYTES, DISK = 17e6, 200e6

#: Seconds of one processor for one of the competition's images: `siimcovid bench` on 2.5 GHz EPYC cores; 7 % of them
#: are JPEG Lossless. And for a picture of 1024 pixels, read and written.
PREPARE, PREPARE_PICTURE = 0.93 * 0.05 + 0.07 * 0.22, 0.04

PROCESSORS = 4  # of Kaggle's GPU machines

#: Hours of a session besides: start, measuring, fusion, the submission.
OVERHEAD = 0.1


@dataclass(frozen=True)
class Job:
    """A training. epoch: hours of one epoch. done, epochs: how many are trained, of how many."""

    name: str
    data: str
    epoch: float
    epochs: int
    done: int = 0

    @property
    def hours(self) -> float:
        """Hours that are left of it."""
        return self.epoch * (self.epochs - self.done)


@dataclass(frozen=True)
class Entry:
    """What runs where from which hour of a session to which. epochs: the first and the last of it, of how many."""

    place: str
    job: str
    data: str
    begin: float
    end: float
    epochs: tuple[int, int, int] | None = None


def pretraining_jobs(preset: Preset, speed: Mapping[str, Throughput], gpus: int) -> tuple[Job, list[Job]]:
    """The backbone on NIH, by all GPUs together, and the detectors on RSNA, by one each, the longest first."""
    epoch = NIH_IMAGES / speed["backbone"].train / 3600 / (gpus / GPU_GAIN if gpus > 1 else 1)
    detectors = [
        Job(stage, "RSNA", RSNA_IMAGES / speed[stage].train / 3600, getattr(preset, stage).rsna_epochs)
        for stage in preset.stages
        if stage in DETECTORS
    ]
    backbone = Job("backbone", "NIH", epoch, preset.backbone.training.epochs)
    return backbone, sorted(detectors, key=lambda job: -job.hours)


def preparation(what: str, begin: float, images: int, picture: bool = False) -> Entry:
    """Preparing images of the competition, read and decoded side by side, or pictures of 1024 pixels."""
    seconds = images * PREPARE_PICTURE / PROCESSORS
    if not picture:
        seconds = max(images * IMAGE_BYTES / DISK, images * PREPARE / PROCESSORS)
    return Entry("processors", "prepare", what, begin, begin + seconds / 3600)


def fold_jobs(preset: Preset, speed: Mapping[str, Throughput], images: int) -> list[Job]:
    """The trainings of all models of the fold ensemble, in the order in which a queue takes them."""
    jobs = []
    for name in plan_of_preset(preset, preset.fusion.detectors, trained=True).models(preset.stages):
        config = getattr(preset, stage := stage_of(name))
        validates = config.training.validate
        trained_on = images * (preset.folds - 1) / preset.folds if preset.members > 1 or validates else images
        jobs.append(_job(name, "the competition", config, speed[stage], trained_on, images))
    return in_order(jobs)


def _job(name: str, data: str, config: Any, speed: Throughput, trained_on: float, images: float) -> Job:
    training = config.training
    seconds = trained_on / speed.train
    if training.validate:
        seconds += (images - trained_on) * validation_passes(config) / speed.predict
    epochs, epoch = training.epochs, seconds / 3600
    if getattr(config, "frozen", False) and config.views:  # features are computed once, and the epochs cost nothing
        epochs, epoch = 1, trained_on * config.views / speed.predict / 3600
    return Job(name, data, epoch, epochs)


def in_order(jobs: Iterable[Job]) -> list[Job]:
    """Jobs of a fold ensemble in the order of the kernel's queue, see queue_forecast.py."""
    by_name = {job.name: job for job in jobs}
    return [by_name[name] for name in queue_forecast.in_order({name: job.hours for name, job in by_name.items()})]


def fill(jobs: Iterable[Job], gpus: int, begin: float, end: float) -> tuple[list[Entry], list[Job]]:
    """Give jobs to GPUs, each to the one that is free first, between two hours of a session; no epoch ends later.

    Returns what runs, and the jobs that are left, with the epochs that are done.
    """
    free, entries, left = [begin] * gpus, [], []
    for job in jobs:
        gpu = min(range(gpus), key=lambda number: free[number])
        count = min(job.epochs - job.done, int((end - free[gpu]) / job.epoch + 1e-9))
        if count > 0:
            until, last = free[gpu] + count * job.epoch, job.done + count
            epochs = (job.done + 1, last, job.epochs)
            entries.append(Entry(f"GPU {gpu}", job.name, job.data, free[gpu], until, epochs))
            free[gpu], job = until, replace(job, done=last)
        if job.done < job.epochs:
            left.append(job)
    return entries, left
