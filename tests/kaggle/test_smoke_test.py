"""The smoke test: every stage takes a step on small images, what fails is named, and a plan for the hours comes out."""

import json
from types import SimpleNamespace

import pytest
import torch

from siimcovid.core.presets import load_preset
from siimcovid.kaggle import smoke_test as smoke_module
from siimcovid.kaggle.rehearsal_inputs import tiny_overrides, write_tiny_weights
from siimcovid.kaggle.smoke_test import describe_machine, machine_lines, smoke_test, stage_line, try_stage
from siimcovid.synthetic.demo_competition import write_competition

SIDE = 64
CPU = torch.device("cpu")


@pytest.mark.parametrize("stage", ["rcnn", "yolo", "study"])
def test_a_stage_trains_and_predicts(stage):
    preset = load_preset("demo", {**tiny_overrides(SIDE), f"{stage}.training.batch": 2, f"{stage}.infer_batch": 2})
    facts = try_stage(stage, getattr(preset, stage), CPU)
    assert "error" not in facts
    assert (facts["size"], facts["batch"]) == (SIDE, 2)
    assert facts["train_images_per_second"] > 0
    assert facts["predict_images_per_second"] > 0
    assert stage_line(stage, facts).startswith(f"{stage}: trains ")


def test_a_stage_that_fails_is_named_with_its_error(monkeypatch):
    def broken(stage, config):
        raise RuntimeError("no kernel image is available for execution on the device")

    monkeypatch.setattr(smoke_module.checkpoints, "build_model", broken)
    facts = try_stage("rcnn", load_preset("demo").rcnn, CPU)
    assert stage_line("rcnn", facts) == (
        "rcnn: FAILED: RuntimeError: no kernel image is available for execution on the device"
    )


def test_a_gpu_that_cannot_multiply_is_not_the_device(monkeypatch):
    properties = SimpleNamespace(name="Tesla P100", total_memory=16e9, major=6, minor=0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: properties)
    monkeypatch.setattr(smoke_module, "_gpu_error", lambda number: "no kernel image is available")
    machine = describe_machine()
    assert machine["device"] == "cpu"
    assert "Tesla P100, 16.0 GB, sm_60: CANNOT BE USED: no kernel image is available" in machine_lines(machine)


def test_the_whole_writes_a_plan_for_nine_hours(tmp_path):
    write_competition(tmp_path / "competition", train_studies=6, test_studies=2, seed=0, scale=0.1, workers=1)
    weights, lines = write_tiny_weights(tmp_path / "weights", SIDE), []
    result = smoke_test(
        "demo",
        tmp_path / "out",
        str(tmp_path / "competition"),
        str(weights),
        overrides={**tiny_overrides(SIDE), **{f"{stage}.training.batch": 2 for stage in ("rcnn", "yolo", "study")}},
        log=lines.append,
    )
    assert json.loads((tmp_path / "out" / "profile.json").read_text()) == result
    assert set(result["stages"]) == {"rcnn", "yolo", "study"}
    assert not any("error" in facts for facts in result["stages"].values())
    assert result["plan"]["hours"] == 9
    assert result["plan"]["degraded"] == []
    assert {"fit rcnn", "detect", "submit"} <= {row["step"] for row in result["plan"]["steps"]}
    assert any(line.startswith("A run of 9 hours would take ") for line in lines)
