"""Models: both presets build, train a step and predict; none of the known traps of geometry and normalisation."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional
from torchvision.ops import box_convert, complete_box_iou_loss, generalized_box_iou_loss

from siimcovid.checkpoint import build_model
from siimcovid.models import backbone
from siimcovid.models.yolo import ComputeLoss
from siimcovid.presets import FULL, SMALL

BOXES = [torch.tensor([[0.1, 0.2, 0.4, 0.8], [0.6, 0.2, 0.9, 0.7]]), torch.empty(0, 4)]


def make_batch(side: int) -> dict:
    images = torch.randint(0, 256, (2, 1, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return {"images": images, "boxes": BOXES, "levels": torch.tensor([1, 0]), "image_ids": ["a", "b"]} | {
        "findings": torch.eye(15)[:2]
    }


@pytest.mark.parametrize("preset", [FULL, SMALL], ids=lambda preset: preset.name)
@pytest.mark.parametrize("stage", ["backbone", "rcnn", "yolo", "study"])
def test_builds_and_steps(stage, preset):
    """A forward, loss and backward of the whole model at 64 pixels: the weights are those of the real size."""
    torch.manual_seed(0)
    model = build_model(stage, getattr(preset, stage)).train()
    losses = model(make_batch(64))
    assert all(loss.ndim == 0 and torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    moved = [name for name, p in trainable.items() if p.grad is not None and p.grad.abs().sum() > 0]
    assert len(moved) > 0.5 * len(trainable)
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad and p.grad is not None]
    assert not frozen


@pytest.mark.parametrize(
    ("stage", "millions"),
    # ResNeXt-101 32x8d: 88.8 M parameters, 86.7 M without its classifier, 0.2 M of them norms (buffers in the detector,
    # where they are frozen). torchvision's pyramid, proposals and box head: 17.7 M. YOLOv5l for one class: 46.1 M
    # (46.5 M for 80 in the package's table). The study head, 2048 x 1024 + 1024 x 4 and biases: 2.1 M.
    [("backbone", 86.8), ("rcnn", 104.1), ("yolo", 46.1), ("study", 88.8)],
)
def test_full_has_the_reports_size(stage, millions):
    model = build_model(stage, getattr(FULL, stage))
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.3)


def test_study_head_is_the_reports():
    head = build_model("study", FULL.study).head
    shapes = [(layer.in_features, layer.out_features) for layer in head if isinstance(layer, nn.Linear)]
    assert shapes == [(2048, 1024), (1024, 4)]
    for layer in (head[0], head[3]):  # Xavier: uniform within sqrt(6 / (in + out))
        bound = (6 / (layer.in_features + layer.out_features)) ** 0.5
        assert layer.weight.abs().max() <= bound
        assert layer.weight.abs().max() > 0.95 * bound
        assert layer.bias.abs().max() == 0


def test_rcnn_sees_the_size_that_it_is_given():
    """The first convolution gets S x S and values normalised once, whatever size the model was built for."""
    model = build_model("rcnn", SMALL.rcnn).eval()
    seen = []
    model.detector.backbone.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    white = torch.full((1, 1, 320, 320), 255, dtype=torch.uint8)
    model.predict(white)
    assert seen[0].shape == (1, 3, 320, 320)
    expected = [(1 - mean) / std for mean, std in zip(backbone.IMAGENET_MEAN, backbone.IMAGENET_STD, strict=True)]
    assert torch.allclose(seen[0].mean(dim=(0, 2, 3)), torch.tensor(expected), atol=1e-5)


@pytest.mark.parametrize("stage", ["rcnn", "yolo"])
def test_predicts_fractions(stage):
    torch.manual_seed(0)
    config = replace(getattr(SMALL, stage), score_threshold=0.0)
    found = build_model(stage, config).eval().predict(make_batch(96)["images"])
    assert len(found) == 2
    for boxes, scores in found:
        assert boxes.shape == (len(scores), 4)
        assert 0 < len(scores) <= config.max_boxes
        assert ((boxes >= 0) & (boxes <= 1)).all()
        assert (scores[:-1] >= scores[1:]).all()


@pytest.mark.parametrize(("kind", "generalised"), [("GIoU", generalized_box_iou_loss), ("CIoU", complete_box_iou_loss)])
def test_yolo_box_loss_is_torchvisions(kind, generalised):
    """Raw zeros decode to the cell's centre and the anchor's size: the loss is torchvision's for those boxes."""
    config = replace(SMALL.yolo, box_loss=kind)
    model = build_model("yolo", config).train()
    detect = model.model.model[-1]
    maps = [torch.zeros(1, 3, side, side, 6) for side in (8, 4, 2)]  # strides 8, 16, 32 of 64 pixels
    targets = torch.tensor([[0.0, 0.0, 0.40, 0.40, 0.30, 0.45]])
    _, _, indices, anchors = ComputeLoss(model.model).build_targets(maps, targets)
    expected = 0.0
    for side, stride, (_, _, row, column), anchor in zip((8, 4, 2), detect.stride, indices, anchors, strict=True):
        if len(row):
            centre = torch.stack([column + 0.5, row + 0.5], dim=1)
            found = box_convert(torch.cat([centre, anchor], dim=1), "cxcywh", "xyxy") * stride / 64
            true = box_convert(targets[:, 2:], "cxcywh", "xyxy").expand_as(found)
            expected += generalised(found * side, true * side, reduction="mean").item()
    scale = config.training.batch * config.box_gain
    assert model.losses(maps, targets)["box"].item() == pytest.approx(expected * scale, rel=1e-4)


def test_gradients_of_two_halves_are_those_of_the_whole():
    """YOLO's objectness loss is a mean over films, so accumulation and several processes change nothing."""
    torch.manual_seed(0)
    model = build_model("yolo", SMALL.yolo).train()
    maps = [torch.randn(4, 3, side, side, 6) for side in (8, 4, 2)]
    targets = torch.empty(0, 6)
    whole = model.losses(maps, targets)["objectness"]
    halves = [model.losses([m[a : a + 2] for m in maps], targets)["objectness"] for a in (0, 2)]
    assert whole.item() == pytest.approx((halves[0] + halves[1]).item() / 2, rel=1e-5)


def test_frozen_study_keeps_its_norms():
    model = build_model("study", SMALL.study).train()
    before = {name: tensor.clone() for name, tensor in model.backbone.state_dict().items()}
    model(make_batch(64))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.backbone.state_dict().items())


def test_frozen_norms_compute_the_same():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train()
    network(torch.randn(8, 3, 9, 9))
    network.eval()
    films = torch.randn(2, 3, 9, 9)
    before = network(films)
    assert torch.allclose(backbone.freeze_batch_norm(network)(films), before, atol=1e-6)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())


def test_rcnn_ciou_is_torchvisions_on_decoded_boxes():
    """With the offsets that decode to the truth the loss is 0; with others it is (1 - CIoU) over all sampled boxes."""
    torch.manual_seed(0)
    model = build_model("rcnn", replace(SMALL.rcnn, box_loss="CIoU")).train()
    heads = model.detector.roi_heads
    side, true = 64.0, torch.tensor([[8.0, 12.0, 40.0, 50.0]])
    proposals = [torch.tensor([[10.0, 10.0, 42.0, 48.0]])]
    offsets = torch.zeros(2, 8)  # two samples (the truth is a proposal too), two classes
    heads.box_predictor.forward = lambda features: (torch.zeros(2, 2), offsets)
    maps = model.detector.backbone(torch.zeros(1, 3, 64, 64))
    targets = [{"boxes": true, "labels": torch.ones(1, dtype=torch.int64)}]
    _, losses = heads(maps, proposals, [(int(side), int(side))], targets)
    expected = complete_box_iou_loss(torch.cat([proposals[0], true]), true.repeat(2, 1), reduction="sum") / 2
    assert losses["loss_box_reg"] == pytest.approx(expected.item(), abs=1e-5)
    assert losses["loss_box_reg"] > 0.05


def test_level_weights_count_rare_levels_more():
    """Cross entropy as torch defines it with weights: a mean over films, each with the weight of its level."""
    torch.manual_seed(0)
    model = build_model("study", replace(SMALL.study, dropout=0.0))
    batch = {"features": torch.randn(3, 1280), "levels": torch.tensor([0, 1, 1])}
    each = functional.cross_entropy(model.head(batch["features"]), batch["levels"], reduction="none")
    model.level_weights = torch.tensor([2.0, 0.5, 1.0, 1.0])
    assert model(batch)["level"].item() == pytest.approx(((2 * each[0] + 0.5 * each[1] + 0.5 * each[2]) / 3).item())
