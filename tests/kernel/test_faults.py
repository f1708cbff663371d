"""The fault table: what can go wrong on the day, what happens then, and what the submission holds.

Every row runs the notebook's cells on a tiny synthetic competition with one thing broken. In each, no cell raises, the
submission validates against the sample, and the fault stands in the report that the last cell prints and in run.json.
docs/faults.md is this table, and that of two_process_faults.py.
"""

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from pydicom.uid import JPEGLosslessSV1

from siimcovid.core.errors import InputError
from siimcovid.kernel import stage_models
from siimcovid.kernel.run_summary import summary
from support import fault_scenes as make
from support import fault_workers, two_process_faults
from support.dicom_files import jpeg_lossless, values, write
from support.fault_scenes import Scene, check

pytestmark = pytest.mark.slow

#: What the submission holds where nothing is known.
HEADER = "the header alone"


@dataclass(frozen=True)
class Fault:
    """A row of the table."""

    name: str
    happens: str
    holds: str
    inject: Callable[[Scene], None]
    named: str  # stands in the report
    by_priors: str = "none"  # how many rows hold priors: none, some, studies, images, all
    degraded: bool = True


HOW = ("missing", "empty", "truncated", "garbled")
MODELS = "every row from the models"
ONE = "boxes of the other detector, study labels from the study model"
NO_STUDY_PROBS = "boxes from the detectors, the frequencies in the study rows"
SOME = "the frequencies in their rows, the models' answers in the others"
FREQUENCIES = "the train set's frequencies in every row"
GIVEN = "no training; the trained models of WEIGHTS_DIR are taken"
SAMPLE = "sample_submission.csv"

#: The models: stage -> what the submission holds without it, and how many rows priors answer then.
MODEL_ROWS = {"rcnn": (ONE, "none"), "yolo": (ONE, "none"), "study": (NO_STUDY_PROBS, "studies")}


def faults() -> Iterator[Fault]:
    """The table."""
    completed = "its ids are completed from the names of the folders and files in test/"
    for how in HOW:
        yield Fault(f"{SAMPLE} {how}", completed, MODELS, make.harm(f"competition/{SAMPLE}", how), SAMPLE)
    yield Fault("competition folder empty", "no ids are known", HEADER, make.nothing_but_a_folder, SAMPLE, "all")

    absent = "sample images without a file"
    for state, inject in (("missing", make.no_test_folder), ("empty", make.empty_test_folder),
                          ("a file", make.file_for_test_folder)):  # fmt: skip
        yield Fault(f"test/ {state}", "nothing is predicted", FREQUENCIES, inject, absent, "all", False)
    for how in HOW:
        named = absent if how == "missing" else "Images that could not be prepared:\n"
        inject = make.half_images(how)
        yield Fault(f"half the test images {how}", "these are left out", SOME, inject, named, "some", False)
    inject = make.sample_asks_for_more
    yield Fault("a sample id without a file", "it is reported", SOME, inject, "4567cdef", "some", False)
    inject, named = make.sample_asks_for_less, "test files that the sample does not ask for"
    yield Fault("a file without a sample id", "it is left out", MODELS, inject, named, "none", False)

    for name in ("train_image_level.csv", "train_study_level.csv"):
        for how in HOW:
            happens = GIVEN
            if (name, how) == ("train_study_level.csv", "missing"):
                happens = "the detectors are trained; the study model of WEIGHTS_DIR is taken"
            yield Fault(f"{name} {how} (MODE finetune)", happens, MODELS, make.damaged_labels(name, how), name)

    unverified = "whole .safetensors files are taken unverified"
    for how in HOW:
        inject = make.harm("weights/manifest.json", how)
        yield Fault(f"weights manifest {how}", unverified, MODELS, inject, "manifest.json")
    refused = "refused by name; the run goes on without it"
    for stage, (holds, by_priors) in MODEL_ROWS.items():
        name = f"{stage}.safetensors"
        for how in HOW:
            yield Fault(f"{name} {how}", refused, holds, make.harm(f"weights/{name}", how), name, by_priors)
        yield Fault(f"{name} with NaN", refused, holds, make.not_finite(stage), "not finite", by_priors)
    inject = make.parameter(OVERRIDES={"cache_size": 64, "fusion.hflip_tta": False, "members": 2})
    yield Fault("a fold ensemble's members missing", "those that are there are used", MODELS, inject, "study.1.safet")
    inject = make.parameter(WEIGHTS_DIR="/nowhere")
    yield Fault("no weights folder", "nothing is predicted", FREQUENCIES, inject, "/nowhere", "all")

    inject = make.out_of_memory("rcnn", lambda batch, device: batch <= 2)
    yield Fault("GPU memory too small for the batch", "half the batch, until it fits", MODELS, inject, "out of memory")
    inject = make.out_of_memory("yolo", lambda batch, device: device == "cpu")
    yield Fault("GPU memory too small for an image", "the model runs on the CPU", MODELS, inject, "the CPU")
    inject, named = make.out_of_memory("study", lambda *_: False), "memory does not suffice for study"
    yield Fault(
        "memory too small on the CPU too", "the run goes on without it", NO_STUDY_PROBS, inject, named, "studies"
    )
    inject = make.training_out_of_memory
    yield Fault("GPU memory too small to train", "half the batch, accumulated", MODELS, inject, "out of memory")

    inject, named = make.worker(fault_workers.killed_worker), "crashes its decoder"
    yield Fault("an image that kills its decoder", "it is left out", SOME, inject, named, "some", False)
    full = "No space left on device"
    inject = make.worker(fault_workers.full_disk)
    yield Fault("disk full while preparing", "what was prepared before is used", SOME, inject, full, "some")
    inject = make.full_disk_after_the_first_submission
    yield Fault("disk full after the first submission", "nothing more is written", FREQUENCIES, inject, full, "all")
    inject, named = make.torn_picture, "have no whole picture"
    yield Fault("a torn picture in the cache", "the image is left out", SOME, inject, named, "some")

    inject, named = make.without("siimcovid.inference.predictor"), "siimcovid.inference.predictor"
    yield Fault("a package of the models missing", "nothing is predicted", FREQUENCIES, inject, named, "all")
    inject, named = (
        make.without("siimcovid.inference.weighted_boxes_fusion"),
        "siimcovid.inference.weighted_boxes_fusion",
    )
    holds = "study labels from the study model, the frequencies in the image rows"
    yield Fault("a package of the fusion missing", "no boxes", holds, inject, named, "images")

    inject, named = make.parameter(HOURS=1e-9), "the hours are spent"
    yield Fault("the hours are spent", "nothing is prepared or predicted", FREQUENCIES, inject, named, "all", False)
    for name, value, happens, named in (
        ("HOURS", "nine", "9 hours", "HOURS must be a number"),
        ("MODE", "train", "MODE infer", "MODE must be"),
        ("PRESET", "medium", "PRESET full", "PRESET must be 'full' or 'small' or 'demo' or 'best', not 'medium'"),
        ("OVERRIDES", {"rcnn.epochs": 3}, "the preset without OVERRIDES", "rcnn.training.epochs"),
        ("OVERRIDES", "rcnn.epochs=3", "the preset without OVERRIDES", "OVERRIDES must be JSON"),
        ("STRICT", "maybe", "STRICT False", "STRICT must be true or false"),
        ("SESSIONS", 0, "SESSIONS 1", "SESSIONS must be a whole number"),
        ("JOBS", -1, "JOBS 0", "JOBS must be a whole number"),
        ("SEED", -1, "the preset's seed", "SEED must be a whole number"),
    ):
        yield Fault(f"{name} = {value!r}", happens, MODELS, make.parameter(**{name: value}), named)
    inject = make.output_below_a_file
    yield Fault("OUTPUT_DIR cannot be made", "the notebook's own folder is used", MODELS, inject, "file/out")
    inject = make.damaged_record
    yield Fault("run.json of an earlier run damaged", "a new plan", MODELS, inject, "submission.csv", "none", False)
    inject, named = make.harm("competition.truth/test_image_level.csv", "garbled"), "test_image_level.csv"
    yield Fault("the answers garbled", "no scoreboard", MODELS, inject, named)


FAULTS = list(faults())


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_fault(fault, scene):
    fault.inject(scene)
    scene.execute()
    assert fault.named in scene.report()
    assert bool(scene.run.degraded) == fault.degraded, scene.run.degraded
    if fault.holds == HEADER:
        assert (scene.out / "submission.csv").read_text() == "id,PredictionString\n"
    else:
        check(scene, fault.by_priors)


def test_no_fault(scene):
    scene.execute()
    check(scene)
    assert scene.run.degraded == []
    assert "DEGRADED: nothing" in summary(scene.run)
    record = json.loads((scene.out / "run.json").read_text())
    steps = [row["step"] for row in record["steps"]]
    order = ["index", "plan", "prepare", "fit rcnn", "fit yolo", "fit study", "detect", "classify", "submit", "score"]
    assert [step for step in steps if step in order] == order
    assert all(row["seconds"] is not None for row in record["steps"])
    assert record["total"]["seconds"] > 0 < record["total"]["predicted_seconds"]


@pytest.mark.parametrize("name", ["yolo.safetensors garbled", "sample_submission.csv empty", "MODE = 'train'"])
def test_strict_raises(scene, name):
    next(fault for fault in FAULTS if fault.name == name).inject(scene)
    scene.parameters["STRICT"] = True
    with pytest.raises(InputError):
        scene.execute()


def test_traceback_is_kept(scene):
    scene.damage("weights/yolo.safetensors", "garbled")
    scene.execute()
    (entry,) = json.loads((scene.out / "run.json").read_text())["degraded"]
    assert entry["step"] == "fit yolo"
    assert "Traceback" in entry["traceback"]
    assert "verified" in entry["traceback"]
    assert set(pd.read_csv(scene.out / "detections.csv")["model"]) == {"rcnn", "ensemble"}
    assert not (scene.out / "submissions" / "yolo.csv").exists()


def add_images(scene: Scene, images: dict[str, bytes]) -> None:
    """Put these files among the test images, each in a study of its own, and into the sample."""
    sample = scene.sample()
    for name, data in images.items():
        path = scene.competition / "test" / f"s{name}" / "series" / f"{name}.dcm"
        path.parent.mkdir(parents=True)
        path.write_bytes(data)
    ids = [f"s{name}_study" for name in images] + [f"{name}_image" for name in images]
    sample = pd.concat([sample, pd.DataFrame({"id": ids, "PredictionString": "none 1 0 0 1 1"})])
    for base in (scene.competition, scene.original):
        (base / "sample_submission.csv").unlink()
        sample.to_csv(base / "sample_submission.csv", index=False)


def test_dicoms_of_every_kind(scene, tmp_path):
    images = {}
    for stored in (8, 12, 16):
        for signed in (False, True):
            path = write(tmp_path / "image.dcm", values(stored, signed), stored, signed=signed)
            images[f"plain{stored}{signed}"] = path.read_bytes()
    pixels = values(12, False)
    for tag in (
        {"PhotometricInterpretation": "MONOCHROME1"},
        {"PixelRepresentation": None},
        {"Rows": 60000},
        {"PixelData": b""},
    ):
        path = write(tmp_path / "image.dcm", pixels, 12, **tag)
        images[f"tag{len(images)}"] = path.read_bytes()
    frames = [jpeg_lossless(pixels, 12)]
    path = write(tmp_path / "image.dcm", pixels, 12, syntax=JPEGLosslessSV1, frames=frames)
    images["lossless"] = path.read_bytes()
    images["nothing"] = b""
    add_images(scene, images)
    scene.execute()
    check(scene, "some")
    failed = set(scene.run.record.failures["image_id"])
    assert "nothing" in failed
    assert not failed & {"lossless", "plain12False", "plain16True"}


def test_real_dicoms_of_every_kind(scene, real):
    images = {path.stem.replace("_", "-").replace(".", "-"): path.read_bytes() for path in (real / "dicom").iterdir()}
    add_images(scene, images)
    scene.execute()
    check(scene, "some")
    assert 0 < len(scene.run.record.failures) < len(images)
    for row in scene.run.record.failures.itertuples():
        assert row.image_id in scene.report()
        assert row.reason


def test_a_thousand_mutated_dicoms(scene, tmp_path):
    rng = np.random.default_rng(0)
    plain = write(tmp_path / "image.dcm", values(12, False), 12).read_bytes()
    frames = [jpeg_lossless(values(12, False), 12)]
    lossless = write(tmp_path / "image.dcm", values(12, False), 12, syntax=JPEGLosslessSV1, frames=frames).read_bytes()
    images = {f"f{k:04}": make.mutate(lossless if k % 4 == 0 else plain, rng) for k in range(1000)}
    add_images(scene, images)
    quick_models(scene)
    scene.execute()
    check(scene, "some")
    failed = set(scene.run.record.failures["image_id"])
    assert 100 < len(failed & set(images)) < 900
    assert f"{len(failed)}" in summary(scene.run) or len(failed) > 20


def quick_models(scene: Scene) -> None:
    """The tiny weights' configurations with models that answer at once: a thousand images take the others a minute."""

    class Quick(torch.nn.Module):
        def __init__(self, stage):
            super().__init__()
            self.stage = stage

        def predict(self, images):
            if self.stage == "study":
                return images.float().mean((1, 2, 3))[:, None] * torch.eye(4)[0] / 255
            box = torch.tensor([[0.2, 0.3, 0.6, 0.7]])
            return [(box, image.float().mean().view(1) / 255) for image in images]

    real = stage_models.read
    scene.patch.setattr(stage_models, "read", lambda path, stage: (real(path, stage)[0], Quick(stage)))


def test_really_full_disk(scene):
    """A file system of its own with room for the first submission and little more."""
    scene.out.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24k", "none", scene.out]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        scene.execute()
        assert "No space left on device" in scene.report()
        check(scene, "all")
    finally:
        subprocess.run(["umount", "--lazy", scene.out], check=True)


DOCUMENT = Path(__file__).parents[2] / "docs" / "faults.md"


def table() -> str:
    """The fault table as Markdown."""
    left_out = "those that cannot be read are left out"
    rows = [(fault.name, fault.happens, fault.holds) for fault in FAULTS]
    rows += [
        ("a disk of 24 kB", "nothing more is written than fits", FREQUENCIES),
        ("DICOM files of every kind, whole and damaged", left_out, SOME),
        ("1,000 DICOM files with mutated bytes", left_out, SOME),
        ("SIGTERM in any step, then a restart", "it goes on where it was", "the same bytes as undisturbed"),
    ]
    lines = [
        "# What can go wrong, and what is submitted then",
        "",
        "Every row is a test in `tests/kernel/test_faults.py` or `tests/kernel/test_restart.py`: the notebook runs to",
        "its end, the submission validates against the sample, and the fault is named in the last cell and in",
        "`run.json`. With `STRICT = True` it raises instead.",
        "",
        "| fault | what happens | what the submission holds |",
        "|---|---|---|",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
        "## In the processes that train a stage together",
        "",
        "Of two processes, one for each GPU, one fails, or both. Every row is a test in",
        "`tests/kernel/test_two_process_faults.py`, with two processes on the CPU (gloo) and torchrun's own agent. In",
        "all of them the submission holds every row from the models.",
        "",
        "| fault | what happens |",
        "|---|---|",
        *(f"| {fault.name} | {fault.happens} |" for fault in two_process_faults.FAULTS),
    ]
    return "\n".join(lines) + "\n"


def test_document_is_this_table():
    assert DOCUMENT.read_text(encoding="utf-8") == table()
