"""Contenders side by side: each trains, predicts and is scored alike, in steps that end where the time does."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from siimcovid.apps.benchmarks.peers import (
    CONTENDERS,
    compare_peers,
    ours,
    plain_classifier,
    plain_loop,
    torchvision_reference,
    yolov5_trainer,
)
from siimcovid.apps.benchmarks.peers.compare_peers import Result, markdown
from siimcovid.apps.benchmarks.peers.peer_job import Outcome, PeerJob, read_job, read_outcome, write_job, write_outcome
from siimcovid.apps.benchmarks.peers.training_budget import Plan, ShortEpochs, endless_batches, plan, step_seconds
from siimcovid.apps.command_line import main
from siimcovid.core.errors import InputError
from siimcovid.core.files import make_folder
from siimcovid.data.competition import index_table, write_index
from siimcovid.data.datasets import ImageDataset
from siimcovid.inference.predictor import DETECTION_COLUMNS
from siimcovid.models import checkpoints
from support.tiny_stages import BOX, eight_images


@pytest.fixture
def job(tmp_path) -> PeerJob:
    """A job for eight small images, the last four of them without truth for the test part."""
    cache, images = eight_images(make_folder(tmp_path / "cache"))
    images = index_table([{"path": "", "series_id": "", **row} for row in images.to_dict("records")])
    write_index(images, tmp_path / "train.csv")
    blind = images.iloc[4:].assign(boxes=[[] for _ in range(4)], study_label=None, split="test")
    write_index(blind, tmp_path / "test.csv")
    out = make_folder(tmp_path / "out")
    return PeerJob("yolov5", out, cache, tmp_path / "train.csv", tmp_path / "test.csv", None, 0.01, 1)


@pytest.mark.parametrize(
    ("seconds", "step", "whole", "expected"),
    [
        (300, 0.5, 1000, Plan(10, 60)),  # .6 of an epoch: ten parts
        (300, 0.5, 30, Plan(20, 30)),  # exactly 20 epochs
        (300, 0.5, 28, Plan(22, 27)),  # 21.4 epochs: 22 parts, none longer than an epoch
        (0.01, 0.5, 30, Plan(1, 1)),
        (2, 0.5, 30, Plan(4, 1)),
    ],
)
def test_plan_fills_the_time(seconds, step, whole, expected):
    assert plan(seconds, step, whole) == expected
    assert expected.steps <= whole


def test_first_step_is_not_measured():
    assert step_seconds([100.0, 101.0, 102.0, 104.0]) == pytest.approx(4 / 3)


def test_parts_of_epochs_visit_every_image_equally_often(job):
    images, _ = job.images()
    parts = ShortEpochs(ImageDataset(images, job.cache, 32), 6, seed=0)
    seen = [parts[part * 6 + number]["image_ids"] for part in range(4) for number in range(6)]
    counts = pd.Series(seen).value_counts()
    assert counts.to_dict() == dict.fromkeys(images["image_id"], 3)
    assert seen[:8] != seen[8:16]


def test_endless_batches_are_whole(job):
    images, _ = job.images()
    batches = endless_batches(ImageDataset(images, job.cache, 32), 3, seed=0)
    names = [next(batches)["image_ids"] for _ in range(4)]
    assert [len(batch) for batch in names] == [3] * 4
    assert len({*names[0], *names[1]}) == 6


def test_job_and_outcome_are_files(job):
    assert read_job(write_job(replace(job, settings={"yolo.size": 64}))) == replace(job, settings={"yolo.size": 64})
    outcome = Outcome("", 2.0, 32, 4, 1.0)
    table = pd.DataFrame([["0123", "yolov5", 0.5, *BOX]], columns=DETECTION_COLUMNS)
    write_outcome(job, table, outcome)
    again, found = read_outcome(job.out)
    assert found == outcome
    assert again["image_id"].tolist() == ["0123"]


def test_label_line_is_centre_and_size():
    assert yolov5_trainer.label_line([0.2, 0.3, 0.6, 0.8]) == "0 0.400000 0.550000 0.400000 0.500000\n"


@pytest.mark.parametrize(
    ("step", "factor"),
    [
        (0, 0.001),
        (50, 0.001 + 0.999 / 2),  # a tenth of 1,000 steps is warm-up
        (100, 1.0),
        (615, 1.0),
        (616, 0.1),  # 16 of 26 epochs
        (847, 0.01),  # 22 of 26
    ],
)
def test_reference_schedule(step, factor):
    assert torchvision_reference.learning_rate_factor(step, 1000, 2000) == pytest.approx(factor)


def check_detections(table: pd.DataFrame, outcome: Outcome) -> None:
    assert list(table) == DETECTION_COLUMNS
    assert set(table["image_id"]) <= {f"image{k}" for k in range(4, 8)}
    assert table["score"].between(0, 1).all()
    assert outcome.steps >= 1
    assert min(outcome.train_seconds, outcome.infer_seconds) > 0


@pytest.mark.parametrize(
    ("name", "settings"),
    [("yolo_random", {"yolo.size": 64, "yolo.infer_size": 64}), ("study_random", {"study.size": 64})],
)
def test_ours(job, name, settings, monkeypatch):
    monkeypatch.setattr(ours, "MEASURED", 1)
    stage = CONTENDERS[name].stage
    asked = replace(job, name=name, settings={**settings, f"{stage}.training.batch": 2})
    table, outcome = ours.contend(asked, *job.images())
    assert outcome.start == ""
    assert outcome.trained_images == 2 * outcome.steps
    if stage == "study":
        assert table["image_id"].tolist() == [f"image{k}" for k in range(4, 8)]
    else:
        check_detections(table, outcome)


def test_torchvision(job, monkeypatch):
    monkeypatch.setattr(plain_loop, "MEASURED", 1)
    monkeypatch.setattr(torchvision_reference, "SIDE", 64)
    monkeypatch.setattr(torchvision_reference, "BATCH", 2)
    check_detections(*torchvision_reference.contend(job, *job.images()))


def test_plain_classifier(job, monkeypatch, tmp_path):
    monkeypatch.setattr(plain_loop, "MEASURED", 1)
    monkeypatch.setattr(plain_classifier, "SIDE", 64)
    monkeypatch.setattr(plain_classifier, "BATCH", 2)
    start = plain_classifier.build_backbone("efficientnet_lite0").state_dict()
    monkeypatch.setattr(plain_classifier, "verified", lambda folder, name: folder / name)
    monkeypatch.setattr(plain_classifier, "read_tensors", lambda path: (start, {}))
    table, outcome = plain_classifier.contend(replace(job, start=tmp_path), *job.images())
    assert outcome.start == "efficientnet_lite0.safetensors"
    assert np.allclose(table.iloc[:, 2:].sum(axis=1), 1)
    assert table["image_id"].tolist() == [f"image{k}" for k in range(4, 8)]


@pytest.mark.slow
def test_yolov5_trainer_in_its_process(job):
    assert compare_peers.run_child(replace(job, seconds=1.0)) == ""
    table, outcome = read_outcome(job.out)
    check_detections(table, outcome)
    assert outcome.trained_images == 8 * outcome.steps


def test_failure_of_a_child_is_its_last_line(job):
    fault = compare_peers.run_child(replace(job, cache=Path("absent"), name="unknown"))
    assert "KeyError: 'unknown'" in fault
    assert "exit status 1" in fault


def test_scores_are_the_competitions(job):
    images, _ = job.images()
    truth = images.assign(split="test")
    boxes = [[name, "x", 0.9, *BOX] for name, true in zip(truth["image_id"], truth["boxes"], strict=True) if true]
    table = pd.DataFrame(boxes, columns=DETECTION_COLUMNS)
    assert compare_peers.score("yolo", table, truth) == 1
    assert compare_peers.score("rcnn", table.iloc[:1], truth) == 0.5  # one of two boxes


def test_table():
    results = [
        Result("yolov5", "random", 5, 5.1, 2.0, 0.1234, 10.04, 20.0),
        Result("yolov5", "random", 10, failure="exit status 1"),
        Result("study", "ImageNet (x)", 5, 5.0, 2.0, 0.5, 3.0, 4.0),
    ]
    assert markdown(results).splitlines() == [
        "| opacity AP | starts from | 5 minutes | 10 minutes | training, images/s | inference, images/s |",
        "|---|---|---|---|---|---|",
        "| yolov5's own trainer, `yolov5n` | random | 0.123 | failed | 10.0 | 20.0 |",
        "",
        "| mean AP of the study labels | starts from | 5 minutes | 10 minutes | training, images/s "
        "| inference, images/s |",
        "|---|---|---|---|---|---|",
        "| ours, `small` study model | ImageNet | 0.500 |  | 3.0 | 4.0 |",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "fast"], "no contender 'fast'"),
        (["--minutes", "0"], "0 minutes and 1 threads: give minutes above 0"),
    ],
)
def test_arguments_at_fault(arguments, message, capsys):
    assert main(["bench", "--peers", "absent", "--threads", "1", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_competition_from_first_to_last(job, monkeypatch, tmp_path):
    """With a contender that says the truth of the first train image of all test images."""
    images, _ = job.images()
    data = compare_peers.AblationData("demo", tmp_path, images, images.iloc[4:], job.cache, tmp_path, [])
    monkeypatch.setattr(compare_peers, "read", lambda *arguments: data)
    monkeypatch.setattr(compare_peers, "import_weights", lambda *arguments: None)
    monkeypatch.setattr(compare_peers, "machine", dict)

    def child(job: PeerJob) -> str:
        train, test = job.images()
        assert len(train) == 7  # but the image that nobody annotated
        assert test["boxes"].map(len).sum() == 0
        assert test["study_label"].isna().all()
        rows = [[name, "x", 0.9, *BOX] for name in test["image_id"]]
        outcome = Outcome("", job.seconds, 14, 7, 2.0)
        write_outcome(job, pd.DataFrame(rows, columns=DETECTION_COLUMNS), outcome)
        return ""

    monkeypatch.setattr(compare_peers, "run_child", child)
    out = tmp_path / "peers.json"
    found = compare_peers.compare(tmp_path, out, [1.0], 1, ["yolov5"])
    assert [(r.name, r.start, r.epochs, r.train_speed, r.infer_speed) for r in found] == [
        ("yolov5", "random", 2.0, 0.23, 2.0)
    ]
    written = json.loads(out.read_text())
    assert written["images"] == {"train": 7, "test": 4}
    assert written["results"][0]["score"] == found[0].score > 0
    assert "yolov5n" in out.with_suffix(".md").read_text()
    calls = []
    monkeypatch.setattr(compare_peers, "run_child", lambda job: calls.append(job.seconds) or "it failed")
    again = compare_peers.compare(tmp_path, out, [1.0, 2.0], 1, ["yolov5"])
    assert calls == [120.0]  # what was measured is not measured again
    assert again[0] == found[0]
    compare_peers.compare(tmp_path, out, [1.0, 2.0], 1, ["yolov5"])
    assert calls == [120.0, 120.0]  # but what failed is
    with pytest.raises(InputError, match=r"peers.json has results of another threads; move it away"):
        compare_peers.compare(tmp_path, out, [1.0], 2, ["yolov5"])
    out.write_text("[]")
    with pytest.raises(InputError, match="another form"):
        compare_peers.compare(tmp_path, out, [1.0], 1, ["yolov5"])


def test_all_contenders_have_a_module_and_a_stage():
    modules = {"ours", "yolov5_trainer", "torchvision_reference", "plain_classifier"}
    assert {contender.module for contender in CONTENDERS.values()} == modules
    assert {contender.stage for contender in CONTENDERS.values()} <= set(checkpoints.STAGES)
