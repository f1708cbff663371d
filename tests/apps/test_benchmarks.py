"""The benchmark measures the same work on both sides, and what makes inference fast changes nothing."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from pydicom.uid import ExplicitVRLittleEndian, JPEGLosslessSV1
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from siimcovid.apps.benchmarks import (
    WORKS,
    Measured,
    box_benchmarks,
    image_benchmarks,
    inference_benchmark,
    race,
    scaling_benchmark,
)
from siimcovid.apps.benchmarks.run_benchmarks import run
from siimcovid.apps.command_line import main
from siimcovid.core.configuration import STAGES
from siimcovid.core.errors import InputError
from siimcovid.core.presets import DEMO
from siimcovid.data.dicom_image import read_image
from siimcovid.evaluation.mean_average_precision import average_precision
from siimcovid.models import checkpoints
from siimcovid.models.backbone import Backbone, build_backbone, for_inference, freeze_batch_norm
from siimcovid.models.flops import forward_flops

NORMS = (nn.BatchNorm2d, FrozenBatchNorm2d)


def shake_norms(model: nn.Module) -> nn.Module:
    """Statistics and weights as after training, not the ones of a new batch norm that does nothing."""
    for norm in model.modules():
        if isinstance(norm, NORMS):
            for name, (low, high) in {
                "running_mean": (-0.2, 0.2),
                "running_var": (0.5, 2),
                "bias": (-0.3, 0.3),
            }.items():
                getattr(norm, name).data.uniform_(low, high)
            norm.weight.data.uniform_(0.5, 1.5)
    return model.eval()


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [False, True], ids=["batch norm", "frozen batch norm"])
@pytest.mark.parametrize("architecture", ["resnext101_32x8d", "efficientnet_lite0"])
def test_folding_keeps_every_map(architecture, frozen):
    torch.manual_seed(0)
    network: Backbone = build_backbone(architecture)
    network = shake_norms(freeze_batch_norm(network) if frozen else network)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    fast = for_inference(network)
    assert not [m for m in fast.modules() if isinstance(m, NORMS)]
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        for slow_map, fast_map in zip(network(images), fast(images), strict=True):
            assert (slow_map - fast_map).abs().max() < 1e-4 * slow_map.abs().max()
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())  # a copy was folded


@pytest.mark.parametrize("stage", ["rcnn", "yolo", "study"])
def test_folded_model_predicts_the_same(stage):
    torch.manual_seed(0)
    model = shake_norms(checkpoints.build_model(stage, getattr(DEMO, stage)))
    images = torch.randint(0, 255, (2, 1, 64, 64), dtype=torch.uint8)
    slow = model.predict(images)
    fast = for_inference(model).predict(images)
    if stage == "study":
        assert torch.allclose(slow, fast, atol=1e-4)
    else:
        for (corners, scores), (fast_corners, fast_scores) in zip(slow, fast, strict=True):
            assert torch.allclose(scores, fast_scores, atol=1e-4)
            alike = (scores[:, None] - fast_scores).abs() < 1e-6  # boxes of equal scores come in any order
            alike &= (corners[:, None] - fast_corners).abs().amax(dim=2) < 1e-3
            assert alike.any(dim=0).all()
            assert alike.any(dim=1).all()


@pytest.mark.parametrize(("moved", "fine"), [(0, True), (5, True), (6, False)])
def test_contenders_may_differ_in_five_of_a_hundred_boxes(moved, fine):
    boxes = np.random.default_rng(0).random((100, 5))
    table = pd.DataFrame(boxes, columns=["score", "x1", "y1", "x2", "y2"]).assign(image_id=["a"] * 50 + ["b"] * 50)
    other = table.copy()
    other.loc[: moved - 1, "x1"] += 2
    if fine:
        inference_benchmark.assert_alike(table, other.iloc[::-1])
    else:
        with pytest.raises(AssertionError, match="6 of 100 rows differ"):
            inference_benchmark.assert_alike(table, other)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, JPEGLosslessSV1])
def test_plain_chain_gives_our_pixels(tmp_path, syntax):
    pixels = np.random.default_rng(0).random((40, 30))
    path = image_benchmarks.write_dicom(tmp_path / "image.dcm", syntax, pixels)
    assert np.array_equal(image_benchmarks.plain_chain(path, tmp_path / "image.png"), read_image(path))


def test_loop_and_metric_agree():
    rng = np.random.default_rng(0)
    corners = rng.random((300, 2))
    found = np.hstack([corners, corners + 0.3])
    arguments = rng.integers(0, 10, 280), rng.random(280), found[:280], rng.integers(0, 12, 20), found[280:]
    assert box_benchmarks.voc_loop(*arguments) == pytest.approx(average_precision(*arguments), abs=1e-12)


def test_race_takes_turns():
    order = []
    found = race(lambda: order.append("baseline"), lambda: order.append("ours") or 7, 3, "wall")
    assert order == ["baseline", "ours"] * 3
    assert (found.baseline, found.ours) == (None, 7)


@pytest.mark.slow
def test_table_and_json(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(box_benchmarks, "IMAGES", 50)
    monkeypatch.setattr(box_benchmarks, "IMAGES_OF_METRIC", 20)
    found = run(["fuse", "metric"], tmp_path / "bench.json")
    assert json.loads((tmp_path / "bench.json").read_text()) == found
    assert list(found) == ["machine", "fuse", "metric"]
    for name in ("fuse", "metric"):
        assert found[name]["ratio"] == pytest.approx(found[name]["baseline_s"] / found[name]["ours_s"], rel=1e-2)
    assert "torch" in capsys.readouterr().out.splitlines()[0]


def test_ratio():
    measured = Measured(
        "work", "baseline", "image", baseline_s=3.0, ours_s=0.25, clock="wall", floor={"read": 0.1234567}
    )
    assert measured.as_dict()["ratio"] == 12
    assert measured.as_dict()["floor"] == {"read": 0.1235}


def test_unknown_name_is_refused(capsys):
    with pytest.raises(InputError, match="no benchmark 'fast'"):
        run(["fast"])
    assert main(["bench", "--only", "fast"]) == 2
    message = capsys.readouterr().err
    assert all(name in message for name in WORKS)


def test_small_images_are_all_different(tmp_path):
    scaling_benchmark.write_images(tmp_path, 5)
    paths = sorted(tmp_path.rglob("*.dcm"))
    pictures = {read_image(path).tobytes() for path in paths}
    assert [len(paths), len(pictures)] == [5, 5]


def test_scale_is_drawn(tmp_path):
    rows = [{"images": n, "peak_bytes": 1 << 29, "seconds": {"prepare": n / 9, "predict": n / 5}} for n in (1, 10, 60)]
    scaling_benchmark.draw(rows, tmp_path / "scale.png")
    assert (tmp_path / "scale.png").stat().st_size < 150_000


def test_operations_of_known_networks():
    """Published: 16.4 billion multiply-adds for ResNeXt-101 32x8d at 224 pixels (torchvision's table)."""
    from siimcovid.core.presets import FULL

    assert forward_flops("study", FULL.study, 224) == pytest.approx(2 * 16.4e9, rel=0.01)


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_has_its_operations(stage):
    """On four times the pixels a convolutional network does four times as much; a box head on proposals does not."""
    config = getattr(DEMO, stage)
    small, large = (forward_flops(stage, config, side) for side in (128, 256))
    assert 0 < small < large <= 4.01 * small
