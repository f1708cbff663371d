"""A session of pretraining: what is trained on which data set, from what, and how a later session goes on with it.

Trainings run in place or in processes of their own, on a few drawn images of NIH's and RSNA's layouts.
"""

import contextlib
import json
import shutil
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from siimcovid.apps.command_line import main
from siimcovid.core.errors import InputError
from siimcovid.core.presets import load_preset
from siimcovid.kernel import pretraining_session
from siimcovid.kernel.pretraining_session import FOLDER, check_starts, halved, pretrain
from siimcovid.models import checkpoints, weights_manifest
from siimcovid.synthetic.pretraining_sets import write_pretraining
from siimcovid.training.side_by_side import Outcome
from siimcovid.training.training_job import TrainingJob

pytestmark = pytest.mark.slow

SIDE = 64
SETTINGS: dict[str, object] = {"nih_cache_size": SIDE, "rsna_cache_size": SIDE, "yolo.architecture": "yolov5n"}
for _stage in ("backbone", "rcnn", "yolo", "study"):
    SETTINGS |= {f"{_stage}.size": SIDE, f"{_stage}.infer_size": SIDE, f"{_stage}.training.batch": 4}
    SETTINGS |= {} if _stage == "yolo" else {f"{_stage}.backbone": "mobilenet_v3_small"}
SETTINGS |= {"backbone.training.epochs": 2, "rcnn.rsna_epochs": 1, "yolo.rsna_epochs": 1, "rcnn.pyramid_channels": 16}
SETTINGS |= {"rcnn.head_width": 16, "rcnn.anchor_sides": [6, 12, 24, 40], "rcnn.proposals_train": 20}
ALL = ["backbone", "rcnn", "yolo"]


@pytest.fixture(scope="module")
def mounted(tmp_path_factory) -> Path:
    """Both data sets and the weights to start from, as Kaggle mounts them."""
    root = tmp_path_factory.mktemp("input")
    for kind, place in (("nih", "datasets/nih-chest-xrays/data"), ("rsna", "rsna-pneumonia-detection-challenge")):
        write_pretraining(root / place, kind, count=6, seed=0, scale=0.03, workers=1)
    preset, folder = load_preset("best", SETTINGS), root / "siimcovid-weights"
    for name, stage in (("mobilenet_v3_small", "backbone"), ("yolov5n", "yolo")):
        path, config = folder / f"{name}.safetensors", getattr(preset, stage)
        checkpoints.save(path, checkpoints.build_model(stage, config), stage, config)
        tensors, _ = checkpoints.read_tensors(path)
        prefix = "backbone." if stage == "backbone" else ""
        kept = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
        save_file(kept, path)
        weights_manifest.register(path, stage=stage, architecture=name, source="random", licence="none", preset="best")
    return root


@pytest.fixture
def in_place(monkeypatch) -> list[str]:
    """One place for all, so that nothing runs beside another; the stages in the order in which they were trained."""
    order = []
    alone = pretraining_session.train_alone
    monkeypatch.setattr(pretraining_session, "cpu_places", lambda jobs, cores: [None])
    monkeypatch.setattr(pretraining_session, "train_alone", lambda job: order.append(job.stage) or alone(job))
    return order


def states(folder: Path) -> dict[str, bool]:
    """Stage -> whether its training is finished."""
    return {s: json.loads((folder / FOLDER / f"{s}.json").read_text())["finished"] for s in ALL}


@pytest.fixture(scope="module")
def whole(mounted, tmp_path_factory) -> Path:
    """The output of a session that trained all, the detectors side by side where there are two cores."""
    out = tmp_path_factory.mktemp("whole")
    table = pretrain("best", out, 1.0, SETTINGS, mounted)
    assert table.to_dict("list") == {"stage": ALL, "epochs": [2, 1, 1], "state": ["finished"] * 3}
    return out


def test_the_whole(whole):
    """The detector on the same network starts from the backbone of this session, the others from the weights given; the
    competition's sessions can start from all."""
    facts = {stage: json.loads((whole / FOLDER / f"{stage}.json").read_text()) for stage in ALL}
    starts = {stage: facts[stage]["start"]["file"] for stage in ALL}
    assert starts == {
        "backbone": "mobilenet_v3_small.safetensors",
        "rcnn": "backbone.safetensors",
        "yolo": "yolov5n.safetensors",
    }
    manifest = weights_manifest.read_manifest(whole / FOLDER)
    assert sorted(manifest) == [f"{stage}.safetensors" for stage in ALL]
    assert "trained by siimcovid on data" in manifest["backbone.safetensors"]["source"]
    for stage in ALL:
        weights_manifest.verified(whole / FOLDER, f"{stage}.safetensors")
    # the images are no part of it
    assert {path.suffix for path in (whole / FOLDER).iterdir() if path.is_file()} == {".safetensors", ".json", ".csv"}


def test_a_later_session_takes_over_what_is_finished(whole, mounted, tmp_path, in_place):
    """Also where only the images of one set are attached, and nothing is left to do."""
    root = tmp_path / "input"
    shutil.copytree(whole / FOLDER, root / "siim-covid19-pre-1" / FOLDER)
    (root / "siimcovid-weights").symlink_to(mounted / "siimcovid-weights")
    (root / "data").symlink_to(mounted / "datasets" / "nih-chest-xrays" / "data")
    table = pretrain("best", tmp_path / "out", 1.0, SETTINGS, root)
    assert in_place == []
    assert set(table["state"]) == {"finished"}
    for stage in ALL:
        name = f"{stage}.safetensors"
        assert (tmp_path / "out" / FOLDER / name).read_bytes() == (whole / FOLDER / name).read_bytes()
    manifests = [weights_manifest.read_manifest(folder / FOLDER) for folder in (whole, tmp_path / "out")]
    assert manifests[0] == manifests[1]


def test_a_training_that_the_hours_end_goes_on_in_the_next_session(whole, mounted, tmp_path, in_place, monkeypatch):
    """To the bytes of one that was not; the detector waits for the session that has the backbone."""
    real = pretraining_session.multi_gpu.fit
    monkeypatch.setattr(pretraining_session.multi_gpu, "fit", lambda *a, **options: real(*a[:6], 0.0, **options))
    first = pretrain("best", tmp_path / "first", 1.0, SETTINGS, mounted)
    assert first.set_index("stage")["state"].to_dict() == {"backbone": "paused", "rcnn": "finished", "yolo": "finished"}
    assert first.set_index("stage")["epochs"]["backbone"] == 1
    assert "backbone.safetensors" not in weights_manifest.read_manifest(tmp_path / "first" / FOLDER)
    monkeypatch.undo()
    monkeypatch.setattr(pretraining_session, "cpu_places", lambda jobs, cores: [None])
    root = tmp_path / "input"
    shutil.copytree(tmp_path / "first" / FOLDER, root / "siim-covid19-pre-1" / FOLDER)
    for path in mounted.iterdir():
        (root / path.name).symlink_to(path)
    second = pretrain("best", tmp_path / "second", 1.0, SETTINGS, root)
    assert set(second["state"]) == {"finished"}
    name = "backbone.safetensors"
    assert (tmp_path / "second" / FOLDER / name).read_bytes() == (whole / FOLDER / name).read_bytes()


def test_a_stage_that_fails_does_not_stop_the_others(mounted, tmp_path, in_place, monkeypatch, capsys):
    def fail(job):
        return "RuntimeError: broken" if job.stage == "rcnn" else ""

    monkeypatch.setattr(pretraining_session, "train_alone", lambda job: in_place.append(job.stage) or fail(job))
    monkeypatch.setattr(weights_manifest, "register_trained", lambda *arguments: None)
    with pytest.raises(RuntimeError, match="rcnn: RuntimeError: broken"):  # since there is no model at all
        pretrain("best", tmp_path, 1.0, SETTINGS, mounted)
    assert in_place == ALL
    assert "FAILED rcnn" in capsys.readouterr().out


def test_a_damaged_data_set_is_named_and_the_other_is_used(mounted, tmp_path, in_place, capsys):
    root = tmp_path / "input"
    shutil.copytree(mounted, root)
    entries = root / "datasets" / "nih-chest-xrays" / "data" / "Data_Entry_2017.csv"
    entries.write_text("no,table\n1,2\n")
    table = pretrain("best", tmp_path / "out", 1.0, SETTINGS, root)
    assert table["state"].tolist() == ["failed", "finished", "finished"]
    assert "Data_Entry_2017.csv" in capsys.readouterr().err


def test_what_is_not_attached_is_said(mounted, tmp_path, in_place, capsys):
    root = tmp_path / "input"
    root.mkdir()
    with pytest.raises(InputError, match=r"neither NIH ChestX-ray14 nor the RSNA .* attach them"):
        pretrain("best", tmp_path, 1.0, SETTINGS, root)
    (root / "rsna").symlink_to(mounted / "rsna-pneumonia-detection-challenge")
    with pytest.raises(InputError, match="no weights below"):
        pretrain("best", tmp_path, 1.0, SETTINGS, root)
    (root / "w").symlink_to(mounted / "siimcovid-weights")
    table = pretrain("best", tmp_path / "out", 0.0, SETTINGS, root)
    assert set(table["state"]) == {"not trained"}
    printed = capsys.readouterr().out
    assert "NIH ChestX-ray14 is not attached: backbone is not pretrained." in printed
    assert "No time is left for rcnn, yolo: the next session goes on." in printed
    assert in_place == []


def test_a_preset_on_another_network_needs_no_backbone(mounted, tmp_path, in_place):
    settings = {key: value for key, value in SETTINGS.items() if key != "backbone.backbone"}
    table = pretrain("best", tmp_path, 0.0, settings, mounted)
    assert table["stage"].tolist() == ["rcnn", "yolo"]


def test_a_kernel_without_the_weights_to_start_from_is_not_built(mounted, tmp_path, capsys):
    """Faster R-CNN starts from the backbone that is trained before it; YOLO from weights of its own."""
    preset = load_preset("best", SETTINGS)
    weights = tmp_path / "weights"
    shutil.copytree(mounted / "siimcovid-weights", weights)
    check_starts(preset, weights)
    weights_manifest.remove(weights / "yolov5n.safetensors")
    with pytest.raises(InputError, match=r"no weights to start stage yolo .* weights import yolov5n"):
        check_starts(preset, weights)
    weights_manifest.remove(weights / "mobilenet_v3_small.safetensors")
    weights_manifest.register(write_bytes(weights / "x.safetensors"), stage="x", source="", licence="")
    with pytest.raises(InputError, match="no weights to start stage backbone"):
        check_starts(preset, weights)
    arguments = ["kaggle", "build", "--owner", "somebody", "--weights", str(weights), "--pretrain", "1"]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 2
    assert "weights import efficientnet_v2_m" in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("kernel*"))


def write_bytes(path: Path) -> Path:
    path.write_bytes(b"")
    return path


def test_short_memory_halves_the_batch(tmp_path, monkeypatch):
    """Side by side and alone, to the same number of images an update; an image at a time cannot be halved."""
    preset = load_preset("best", SETTINGS)
    jobs = [TrainingJob(stage, preset, None, tmp_path, None, tmp_path) for stage in ("rcnn", "yolo")]
    begun = []

    class Processes(contextlib.nullcontext):
        def __init__(self, places):
            super().__init__(self)
            self.free, self.running = list(places), []

        def start(self, name, job):
            begun.append(job)
            self.running.append((name, job, self.free.pop()))

        def wait(self):
            name, job, place = self.running.pop()
            self.free.append(place)
            lacking = name == "rcnn" and job.preset.rcnn.training.batch > 1
            return [Outcome(name, place, 1.0, False, "CUDA out of memory" if lacking else "broken")]

    monkeypatch.setattr(pretraining_session, "SideBySide", Processes)
    monkeypatch.setattr(pretraining_session, "cpu_places", lambda *_: ["one", "two"])
    session = pretraining_session.Pretraining(preset, tmp_path, tmp_path, time.time() + 60, [], [])
    session.train([jobs[1], jobs[0]], tmp_path)
    sizes = [job.preset.rcnn.training.batch for job in begun if job.stage == "rcnn"]
    assert sizes == [4, 2, 1]
    assert begun[-1].preset.rcnn.training.nominal_batch == preset.rcnn.training.nominal_batch == 16
    assert session.failures == {"yolo": "broken", "rcnn": "broken"}
    assert halved(begun[-1]) is None

    def fit(*arguments, **_):
        tried.append(arguments[1].yolo.training.batch)
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    tried = []
    monkeypatch.setattr(pretraining_session.multi_gpu, "fit", fit)
    assert "CUDA out of memory" in pretraining_session.train_alone(jobs[1])
    assert tried == [4, 2, 1]
