"""Preset `best` at 64 pixels over a week: two sessions that pause, one that ends, one that predicts and is submitted.

The networks are small ones, the rest is the preset's: five folds, mask and `none` losses, mosaics, averaged weights,
hflip TTA. Training starts from a folder as the pretraining session leaves it. Each session finds the outputs of those
before it mounted, read-only.
"""

import contextlib
import io
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import pytest
import torch

from siimcovid.core import paths
from siimcovid.core.presets import load_preset
from siimcovid.core.stage_names import member, stage_of
from siimcovid.evaluation import submission_validator
from siimcovid.kernel import earlier_sessions, step_profile, train_models
from siimcovid.kernel.run import Run
from siimcovid.kernel.step_forecast import Profile, StageProfile
from siimcovid.models import checkpoints, weights_manifest
from siimcovid.synthetic.demo_competition import write_competition
from siimcovid.training.training_loop import TrainingLoop
from support.kernel_cells import draw_nothing, run_cells

SIDE, FOLDS = 64, 5
STAGES = ("rcnn", "yolo", "study")
MODELS = [member(stage, number) for number in range(FOLDS) for stage in STAGES]
EPOCHS = {"rcnn": 1, "yolo": 2, "study": 1}

SETTINGS: dict[str, object] = {"cache_size": SIDE, "yolo.architecture": "yolov5n", "study.hidden": 16}
for _stage in STAGES:
    SETTINGS |= {f"{_stage}.size": SIDE, f"{_stage}.infer_size": SIDE, f"{_stage}.infer_batch": 8}
    SETTINGS |= {f"{_stage}.training.epochs": EPOCHS[_stage], f"{_stage}.training.batch": 4}
    SETTINGS |= {} if _stage == "yolo" else {f"{_stage}.backbone": "mobilenet_v3_small"}
SETTINGS |= {"rcnn.pyramid_channels": 16, "rcnn.head_width": 16, "rcnn.anchor_sides": [6, 12, 24, 40]}
SETTINGS |= {"rcnn.proposals": 20, "rcnn.proposals_train": 20, "rcnn.boxes_per_image": 16}


def write_pretrained(folder: Path) -> None:
    """A folder as the session of pretraining leaves it: the backbone of NIH, and the detectors of RSNA."""
    backbone = {"backbone.backbone": "mobilenet_v3_small", "backbone.size": SIDE, "backbone.infer_size": SIDE}
    preset = load_preset("best", SETTINGS | backbone)
    for stage in ("backbone", "rcnn", "yolo"):
        torch.manual_seed(0)
        path, config = folder / f"{stage}.safetensors", getattr(preset, stage)
        checkpoints.save(path, checkpoints.build_model(stage, config), stage, config)
        weights_manifest.register_trained(path, stage, preset, "rsna")


def costs(run: Run) -> Profile:
    """Seconds for the plan, which are not measured here: enough for all of them."""
    stages = dict.fromkeys(STAGES, StageProfile(epoch=1.0, image=0.1))
    return Profile(stages=stages, test_images=3, trained=earlier_sessions.trained_epochs(run))


@dataclass
class Week:
    """runs: session -> its Run. trained: session -> model and epoch of each epoch that it trained."""

    top: Path
    patch: pytest.MonkeyPatch
    runs: dict[str, Run] = field(default_factory=dict)
    trained: dict[str, list[tuple[str, int]]] = field(default_factory=dict)

    def run(self, name: str, stop_at: str = "", **parameters) -> None:
        """Run the notebook. stop_at: the model whose second epoch the hours do not allow, nor any model after it."""
        real, has_time, ask = TrainingLoop.train_epoch, Run.has_time, train_models.time_for_another_epoch
        late = {f"fit {model}" for model in MODELS[MODELS.index(stop_at) + 1 :]} if stop_at else set()

        def train_epoch(loop) -> None:
            if loop.out.name != "trial":
                number = int(loop.out.name.partition("member_")[2] or 0)
                self.trained[name].append((member(loop.stage, number), loop.state.progress.epoch + 1))
            real(loop)

        def time_for_another_epoch(run, step, model):
            return (lambda _: False) if model == stop_at else ask(run, step, model)

        self.trained[name] = []
        with self.patch.context() as patch:
            patch.setattr(TrainingLoop, "train_epoch", train_epoch)
            patch.setattr(Run, "has_time", lambda run, step, s=0.0: step not in late and has_time(run, step, s))
            patch.setattr(train_models, "time_for_another_epoch", time_for_another_epoch)
            given = {"COMPETITION_DIR": str(self.top / "competition"), "OUTPUT_DIR": str(self.top / name)}
            given |= {"PRESET": "best", "MODE": "finetune", "OVERRIDES": SETTINGS, "SESSIONS": 3, "JOBS": 1}
            self.runs[name] = run_cells(**given | parameters)["run"]

    def mount(self, name: str, slug: str) -> None:
        """Mount a session's output as Kaggle does, without the images' cache, read-only."""
        folder = self.top / "input" / slug
        shutil.copytree(self.top / name, folder, ignore=shutil.ignore_patterns("cache"))
        for path in folder.rglob("*"):
            path.chmod(0o555 if path.is_dir() else 0o444)


@pytest.fixture(scope="module")
def week(tmp_path_factory) -> Iterator[Week]:
    top = tmp_path_factory.mktemp("week")
    write_competition(top / "competition", train_studies=10, test_studies=3, seed=3, scale=0.03, workers=1)
    write_pretrained(top / "input" / "pretrained")
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
        patch.setattr(paths, "KAGGLE_INPUT", top / "input")
        patch.setattr(step_profile, "measure", costs)
        draw_nothing(patch.setattr)
        made = Week(top, patch)
        made.run("first", stop_at="yolo.1")
        made.mount("first", "siim-covid19-1")
        made.run("second", stop_at="yolo.2")
        made.mount("second", "siim-covid19-2")
        made.run("third")
        made.mount("third", "siim-covid19-3")
        made.run("submit", MODE="infer")
        yield made


@pytest.mark.slow
def test_nothing_is_trained_twice_and_there_are_five_members_of_each_stage(week):
    trained = Counter(epoch for name in ("first", "second", "third") for epoch in week.trained[name])
    wanted = {(model, epoch + 1) for model in MODELS for epoch in range(EPOCHS[stage_of(model)])}
    assert set(trained) == wanted
    assert set(trained.values()) == {1}
    assert week.trained["first"][-1] == ("yolo.1", 1)
    assert week.trained["second"][0] == ("yolo.1", 2)
    assert week.trained["second"][-1] == ("yolo.2", 1)
    assert {model for model, _ in week.trained["third"]} == set(MODELS[MODELS.index("yolo.2") :])
    assert week.trained["submit"] == []
    members = set(weights_manifest.read_manifest(week.runs["third"].folder / "weights"))
    assert members >= {f"{model}.safetensors" for model in MODELS}


@pytest.mark.slow
def test_every_session_submits_and_none_is_degraded(week):
    for name, run in week.runs.items():
        sample = week.top / "competition" / "sample_submission.csv"
        checked = submission_validator.validate(run.folder / "submission.csv", sample, run.folder / "index.csv")
        assert checked.faults == [], name
        assert run.degraded == [], name
    assert week.runs["third"].record.dropped == []
    assert week.runs["submit"].record.dropped == []


@pytest.mark.slow
def test_the_submission_is_made_by_every_model_and_its_mirror_images(week):
    run = week.runs["submit"]
    detectors = [model for model in MODELS if stage_of(model) != "study"]
    assert set(run.predictions.predicted) == {f"{d}{end}" for d in detectors for end in ("", "_hflip")}
    assert all(len(images) == len(run.test) for images in run.predictions.predicted.values())
    assert set(run.models.loaded) == set(MODELS)
    assert run.record.by_priors == 0
    for file in ("submission.csv", "detections.csv", "study_probabilities.csv"):
        assert (run.folder / file).read_bytes() == (week.runs["third"].folder / file).read_bytes(), file
    assert set(pd.read_csv(run.folder / "detections.csv")["model"]) >= {"ensemble"}


@pytest.mark.slow
def test_training_starts_from_the_session_of_pretraining(week):
    folder = week.runs["first"].folder / "weights"
    starts = {stage: json.loads((folder / f"{stage}.json").read_text())["start"]["file"] for stage in STAGES}
    assert starts == {"rcnn": "rcnn.safetensors", "yolo": "yolo.safetensors", "study": "backbone.safetensors"}
