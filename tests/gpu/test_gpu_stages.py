"""Every stage in half precision: trained, written, read again, and predicting what the CPU predicts in float32."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from torchvision.ops import box_iou

from siimcovid.core.labels import NIH_FINDINGS
from siimcovid.core.presets import load_preset
from siimcovid.inference.predictor import predict_images
from siimcovid.kaggle.smoke_test import random_batch, try_stage
from siimcovid.models import checkpoints
from siimcovid.models.backbone import for_inference
from siimcovid.training import train_stage
from support.tiny_stages import eight_images

#: By how much scores may differ in float16, whose precision is 1/1024 of a value; logits add up many of them.
TOLERANCE = 0.02
SIDE = 32

DETECTORS = ("rcnn", "yolo", "retinanet")
#: All candidates of a detector. Of Faster R-CNN some proposals are gone by then.
UNSUPPRESSED = {"nms_iou": 1.0, "score_threshold": 0.0, "max_boxes": 1000}


def on_devices(*on_cpu: str) -> pytest.MarkDecorator:
    """All stages on a GPU, and those named on the CPU, which takes seconds for a step in half precision."""
    rows = [(stage, "cpu") for stage in on_cpu]
    rows += [pytest.param(stage, "cuda", marks=pytest.mark.gpu) for stage in checkpoints.STAGES]
    return pytest.mark.parametrize(("stage", "device"), rows, indirect=["device"])


@pytest.mark.slow
@on_devices("study", "yolo")
def test_trains_in_half_precision_and_reloads(stage, device, tmp_path, monkeypatch):
    """Every step of training runs on the device under float16, the losses are finite, and the checkpoint of the last
    epoch is read on the CPU."""
    folder, images = eight_images(tmp_path)
    images = images.head(4)  # two steps: the CPU takes seconds for one in float16
    findings = np.random.default_rng(0).integers(0, 2, (len(images), len(NIH_FINDINGS)))
    images = images.join(pd.DataFrame(findings, columns=list(NIH_FINDINGS)))
    seen, build = set(), checkpoints.build_model

    def build_watched(*arguments):
        model = build(*arguments)
        weight = next(model.parameters())
        model.register_forward_pre_hook(
            lambda *_: seen.add((weight.device.type, torch.get_autocast_dtype(weight.device.type)))
        )
        return model

    monkeypatch.setattr(checkpoints, "build_model", build_watched)
    settings = {
        "size": SIDE,
        "infer_size": SIDE,
        "training.epochs": 1,
        "training.batch": 2,
        "training.nominal_batch": 2,
    }
    preset = load_preset("demo", {f"{stage}.{key}": value for key, value in settings.items()} | {"cache_size": SIDE})
    path = train_stage.fit(stage, preset, images, folder, None, tmp_path)
    assert seen == {(device.type, torch.float16)}
    facts = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    assert facts["finished"]
    assert [0 < epoch["loss"] < 1e3 for epoch in facts["epochs"]] == [True]
    config, model = checkpoints.load_for_inference(path, stage)
    assert next(model.parameters()).device.type == "cpu"
    if stage != "backbone":
        found = predict_images(stage, config, model, images, folder)
        assert len(found.image_ids) == len(images)


@on_devices(*checkpoints.STAGES)
def test_predicts_what_the_cpu_predicts(stage, device, tmp_path):
    """In half precision on the device as in float32 on the CPU: the same logits, and the CPU's ten surest boxes of each
    image in almost the same places. Neighbouring proposals of one score may suppress each other either way round."""
    torch.manual_seed(0)
    settings = {"size": 64, "infer_size": 64, **(UNSUPPRESSED if stage in DETECTORS else {})}
    config = getattr(load_preset("demo", {f"{stage}.{key}": value for key, value in settings.items()}), stage)
    model = checkpoints.build_model(stage, config).eval()
    checkpoints.save(tmp_path / "model.safetensors", model, stage, config)
    model = for_inference(checkpoints.load(tmp_path / "model.safetensors")[2])
    images = random_batch(4, 64, torch.device("cpu"))["images"]
    with torch.inference_mode():
        expected = model.predict(images)
        model = model.to(device)
        with torch.autocast(device.type, torch.float16):
            found = model.predict(images.to(device))
    if torch.is_tensor(expected):
        torch.testing.assert_close(found.float().cpu(), expected, rtol=TOLERANCE, atol=TOLERANCE)
        return
    for (boxes, scores), (their_boxes, their_scores) in zip(expected, found, strict=True):
        overlaps = box_iou(boxes[:10], their_boxes.float().cpu())
        near = (scores[:10, None] - their_scores.float().cpu()[None]).abs() < TOLERANCE
        best = overlaps.where(near, torch.zeros(())).amax(dim=1)
        assert best.median() > 0.7
        assert (best > 0.5).sum() >= 7


@on_devices("backbone")  # the others in tests/kaggle/test_smoke_test.py
def test_the_smoke_kernel_tries_a_stage(stage, device):
    small = {f"{stage}.{key}": 64 for key in ("size", "infer_size")}
    preset = load_preset("demo", {**small, f"{stage}.training.batch": 2, f"{stage}.infer_batch": 2})
    facts = try_stage(stage, getattr(preset, stage), device)
    assert "error" not in facts
    assert facts["train_images_per_second"] > 0 < facts["predict_images_per_second"]
    assert ("memory_gb" in facts) == (device.type == "cuda")
