"""A session that pretrains: the backbone on NIH ChestX-ray14, then the detectors on the RSNA Pneumonia Challenge.

In: the data sets and the weights to start from, as Kaggle mounts them. Out, in `pretrained/` of the output folder: the
trained stages with their manifest, which the sessions that train on the competition start from. All GPUs train the
backbone together; the detectors are trained side by side, on one GPU each.

Training that the hours end is paused. The next session of this kind, to which this one's output is attached, takes over
what is finished and goes on with the rest. A stage that fails is said so, and the others go on.
"""

import time
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from siimcovid.core import paths
from siimcovid.core.configuration import Preset
from siimcovid.core.device import gpu_count
from siimcovid.core.errors import InputError
from siimcovid.core.files import atomic_path, link, make_folder
from siimcovid.core.memory_errors import is_out_of_memory
from siimcovid.core.overrides import override
from siimcovid.core.presets import load_preset
from siimcovid.core.processes import processors
from siimcovid.core.stage_names import DETECTORS
from siimcovid.data import dataset_readers
from siimcovid.data.dataset_readers import Kind
from siimcovid.kernel import weights_sources
from siimcovid.kernel.predict_test_images import free_memory
from siimcovid.kernel.time_budget import RESERVE
from siimcovid.models import initial_weights, weights_manifest
from siimcovid.training import multi_gpu, pretraining, train_stage
from siimcovid.training.side_by_side import SideBySide, cpu_places, gpu_places
from siimcovid.training.training_identity import configuration_identity, differences
from siimcovid.training.training_job import TrainingJob

#: The folder of the trained stages in a session's output.
FOLDER = "pretrained"

#: Data set -> its name for people.
TITLES: Mapping[Kind, str] = {"nih": "NIH ChestX-ray14", "rsna": "the RSNA Pneumonia Detection Challenge"}


def pretrain(
    preset: str = "best",
    output_dir: Path | str = ".",
    hours: float = 9.0,
    overrides: Mapping[str, Any] | None = None,
    root: Path | None = None,
) -> pd.DataFrame:
    """Pretrain the stages of a preset on what is attached; returns `Pretraining.table`.

    Args:
        preset: its name. overrides: single settings of it.
        output_dir: `pretrained/` is made there.
        hours: of the session; a tenth of them stays in reserve.
        root: where inputs are mounted, by default Kaggle's place.

    Raises:
        InputError: neither data set is attached, or no weights to start from.
        RuntimeError: no stage could be trained.
    """
    deadline, root = time.time() + 3600 * hours * (1 - RESERVE), paths.KAGGLE_INPUT if root is None else root
    data = {kind: dataset_readers.find(kind, root) for kind in TITLES}
    if not any(data.values()):
        raise InputError(f"neither {' nor '.join(TITLES.values())} lies below {root}: attach them to the notebook")
    earlier = paths.find_folders(root, lambda folder: folder.name == FOLDER)
    starts = [folder for folder in paths.find_all_weights(root=root) if folder not in earlier]
    if not starts:
        raise InputError(f"no weights to start from lie below {root}: attach the weights dataset to the notebook")
    config, out = load_preset(preset, overrides), Path(output_dir).absolute() / FOLDER
    make_folder(out)
    session = Pretraining(config, out, paths.scratch_folder(out.parent), deadline, starts, earlier)
    stages = stages_on(config)
    for kind, wanted in stages.items():
        session.run(kind, data[kind], wanted)
    table = session.table([stage for wanted in stages.values() for stage in wanted])
    print(table.to_string(index=False))
    if session.failures and not any(out.glob("*.safetensors")):
        raise RuntimeError("; ".join(f"{stage}: {failure}" for stage, failure in session.failures.items()))
    return table


def stages_on(preset: Preset) -> dict[Kind, list[str]]:
    """Data set -> the stages that are pretrained on it, in this order: the backbone where a stage has its network."""
    networks = [getattr(preset, stage).backbone for stage in preset.stages]
    return {
        "nih": ["backbone"] if preset.backbone.backbone in networks else [],
        "rsna": [stage for stage in preset.stages if stage in DETECTORS],
    }


def check_starts(preset: Preset, weights: Path) -> None:
    """Raise InputError where a weights folder lacks what a stage starts from that no stage before it gives."""
    stages = stages_on(preset)
    for stage in (*stages["nih"], *stages["rsna"]):
        config = getattr(preset, stage)
        if stage == "backbone" or not stages["nih"] or config.backbone != preset.backbone.backbone:
            initial_weights.start_file(stage, config, weights)


@dataclass
class Pretraining:
    """A session's work. deadline: by time.time, of the last epoch's end. starts, earlier: folders that are mounted, of
    weights to start from and of earlier sessions of pretraining. failures: stage -> why it failed."""

    preset: Preset
    out: Path
    scratch: Path
    deadline: float
    starts: list[Path]
    earlier: list[Path]
    failures: dict[str, str] = field(default_factory=dict)

    def run(self, kind: Kind, data: Path | None, stages: Iterable[str]) -> None:
        """Pretrain stages on a data set, which is prepared only where one of them has to be trained."""
        wanted = [stage for stage in stages if not self.take_over(stage, kind)]
        if wanted and data is None:
            print(f"{TITLES[kind]} is not attached: {', '.join(wanted)} is not pretrained.")
        elif wanted and time.time() >= self.deadline:
            print(f"No time is left for {', '.join(wanted)}: the next session goes on.")
        elif wanted:
            try:
                self.train(self.jobs(kind, data, wanted), data)
            except Exception as error:  # the other data set may serve all the same
                traceback.print_exc()
                for stage in wanted:
                    self.failures.setdefault(stage, f"{type(error).__name__}: {error}")

    def preset_for(self, stage: str, kind: Kind) -> Preset:
        """The preset with which a stage is pretrained on a data set."""
        return override(self.preset, pretraining.changes(self.preset, stage, kind))

    def take_over(self, stage: str, kind: Kind) -> bool:
        """Take a stage that is finished, here or in an earlier session with the same settings; False without one."""
        wanted = configuration_identity(stage, self.preset_for(stage, kind))
        for folder in (self.out, *self.earlier):
            path = folder / f"{stage}.safetensors"
            facts = weights_sources.facts_of(path)
            identity = facts.get("identity") or {}
            if facts.get("finished") is not True or not path.is_file():
                continue
            if differences({key: identity.get(key) for key in wanted}, wanted):
                continue
            entry = manifest_of(folder).get(path.name)
            if folder != self.out:
                print(f"{stage} is taken from {folder}")
                for name in (f"{stage}.metrics.csv", f"{stage}.json", path.name):
                    if (folder / name).is_file():
                        with atomic_path(self.out / name) as temporary:
                            link(folder / name, temporary)
            if entry:
                weights_manifest.register(self.out / path.name, **entry)
            else:  # the session was killed before it could
                weights_manifest.register_trained(self.out / path.name, stage, self.preset, TITLES[kind])
            return True
        return False

    def jobs(self, kind: Kind, data: Path, stages: Iterable[str]) -> list[TrainingJob]:
        """The trainings of stages on a data set, whose images are prepared first."""
        images, problems = dataset_readers.read(data, kind)
        print(*problems, sep="\n", end="\n" if problems else "")
        presets = {stage: self.preset_for(stage, kind) for stage in stages}
        wanted = {
            stage: pretraining.wanted_images(images, getattr(preset, stage).training, kind)
            for stage, preset in presets.items()
        }
        needed = images.loc[sorted(set().union(*(table.index for table in wanted.values())))]
        cache = self.scratch / kind
        failures = train_stage.prepare(needed, cache, next(iter(presets.values())).cache_size)
        print(f"{TITLES[kind]}: {len(needed) - len(failures):,} images prepared, {len(failures):,} could not be")
        return [
            TrainingJob(
                stage,
                preset,
                wanted[stage][~wanted[stage]["image_id"].isin(failures["image_id"])],
                cache,
                self.start_of(stage),
                self.out,
                pause=True,
                resume_from=self.paused(stage),
                deadline=self.deadline,
            )
            for stage, preset in presets.items()
        ]

    def start_of(self, stage: str) -> Path | None:
        """The weights folder that a stage starts from: this session's backbone where it is the stage's, else a mounted
        one."""
        config = getattr(self.preset, stage)
        backbone = manifest_of(self.out).get("backbone.safetensors", {}).get("architecture")
        if stage != "backbone" and backbone and backbone == config.backbone:
            return self.out
        return weights_sources.start_folder(self.starts, stage, config)

    def paused(self, stage: str) -> Path | None:
        """The earlier session's folder in which a stage's training paused; None where it is begun, or goes on here."""
        name = f"{stage}.resume.pt"
        return next((folder for folder in self.earlier if (folder / name).is_file()), None)

    def train(self, jobs: list[TrainingJob], data: Path) -> None:
        """Train: side by side where there are several and places for them, else one after the other on all GPUs."""
        gpus, cores = gpu_count(), processors()
        places = gpu_places(gpus) if gpus else cpu_places(min(len(jobs), cores), cores)
        if len(jobs) == 1 or len(places) == 1:
            for job in jobs:
                self.end(job, data, train_alone(job))
            return
        waiting, begun = list(jobs), {}
        with SideBySide(places) as processes:
            while waiting or begun:
                while waiting and processes.free:
                    job = waiting.pop(0)
                    begun[job.stage] = job
                    processes.start(job.stage, job)
                for outcome in processes.wait():
                    job = begun.pop(outcome.name)
                    if is_out_of_memory(RuntimeError(outcome.failure)) and (smaller := halved(job)):
                        waiting.insert(0, smaller)
                    else:
                        print(outcome.trace, end="")
                        self.end(job, data, outcome.failure)

    def end(self, job: TrainingJob, data: Path, failure: str) -> None:
        """Say how a training ended, and enter what is finished into the manifest."""
        stage = job.stage
        if failure:
            self.failures[stage] = failure
            print(f"FAILED {stage}: {failure}", flush=True)
        elif weights_sources.is_unfinished(job.checkpoint):
            epochs = len(weights_sources.facts_of(job.checkpoint).get("epochs") or ())
            print(f"{stage} pauses after epoch {epochs}: the next session goes on.", flush=True)
        else:
            weights_manifest.register_trained(job.checkpoint, stage, job.preset, data)

    def table(self, stages: Iterable[str]) -> pd.DataFrame:
        """A row for each stage: stage, epochs that are trained, state ("finished", "paused", "failed" or "not
        trained")."""
        rows = []
        for stage in stages:
            facts = weights_sources.facts_of(self.out / f"{stage}.safetensors")
            state = {True: "finished", False: "paused"}.get(facts.get("finished"), "not trained")
            state = "failed" if stage in self.failures else state
            rows.append({"stage": stage, "epochs": len(facts.get("epochs") or ()), "state": state})
        return pd.DataFrame(rows)


def manifest_of(folder: Path) -> dict[str, dict[str, str]]:
    """A folder's manifest, empty where it has none."""
    return weights_manifest.read_manifest(folder) if (folder / weights_manifest.MANIFEST).is_file() else {}


def halved(job: TrainingJob) -> TrainingJob | None:
    """The same training with half the batch, accumulated to the same; None where it is a single image already."""
    training = getattr(job.preset, job.stage).training
    if training.batch == 1:
        return None
    print(f"{job.stage}: memory is short, so it is trained with half the batch, accumulated to the same", flush=True)
    changes = {"batch": training.batch // 2, "nominal_batch": training.nominal_batch or training.batch}
    preset = override(job.preset, {f"{job.stage}.training.{key}": value for key, value in changes.items()})
    return replace(job, preset=preset)


def train_alone(job: TrainingJob) -> str:
    """Train with the whole machine, with half the batch where memory is short; why it failed, "" if it did not."""
    while True:
        try:
            multi_gpu.fit(*job.arguments(), job.deadline - time.time(), **job.options())
            return ""
        except Exception as error:
            smaller = halved(job) if is_out_of_memory(error) else None
            if smaller is None:
                traceback.print_exc()
                return f"{type(error).__name__}: {error}"
            job = smaller
        free_memory()
