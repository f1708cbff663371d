"""Models: both presets build, train a step and predict; none of the known traps of geometry and normalisation."""

import inspect
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional
from torchvision.ops import box_convert, box_iou, complete_box_iou_loss, generalized_box_iou_loss

from siimcovid.core.errors import InputError
from siimcovid.core.presets import DEMO, FULL
from siimcovid.models import backbone, checkpoints
from siimcovid.models.checkpoints import build_model
from siimcovid.models.feature_pyramid import Pyramid
from siimcovid.models.yolo import ComputeLoss

DETECTORS = ["rcnn", "yolo", "retinanet"]
BOXES = [torch.tensor([[0.1, 0.2, 0.4, 0.8], [0.6, 0.2, 0.9, 0.7]]), torch.empty(0, 4)]


def make_batch(side: int) -> dict:
    images = torch.randint(0, 256, (2, 1, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return {"images": images, "boxes": BOXES, "study_labels": torch.tensor([1, 0]), "image_ids": ["a", "b"]} | {
        "findings": torch.eye(15)[:2]
    }


@pytest.mark.parametrize("preset", [FULL, DEMO], ids=lambda preset: preset.name)
@pytest.mark.parametrize("stage", checkpoints.STAGES)
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
    # (46.5 M for 80 in the package's table). The study head, 2048 x 1024 + 1024 x 4 and biases: 2.1 M. RetinaNet's
    # pyramid from 512, 1024 and 2048 channels to 256: 8.0 M, its eight tower convolutions and two outputs: 4.8 M.
    [("backbone", 86.8), ("rcnn", 104.1), ("yolo", 46.1), ("retinanet", 99.3), ("study", 88.8)],
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


@pytest.mark.parametrize("stage", ["rcnn", "retinanet"])
def test_torchvisions_detectors_see_the_size_that_they_are_given(stage):
    """The first convolution gets S x S and values normalised once, whatever size the model was built for."""
    model = build_model(stage, getattr(DEMO, stage)).eval()
    seen = []
    model.detector.backbone.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    white = torch.full((1, 1, 320, 320), 255, dtype=torch.uint8)
    model.predict(white)
    assert seen[0].shape == (1, 3, 320, 320)
    expected = [(1 - mean) / std for mean, std in zip(backbone.IMAGENET_MEAN, backbone.IMAGENET_STD, strict=True)]
    assert torch.allclose(seen[0].mean(dim=(0, 2, 3)), torch.tensor(expected), atol=1e-5)


@pytest.mark.parametrize("stage", DETECTORS)
def test_predicts_fractions(stage):
    torch.manual_seed(0)
    config = replace(getattr(DEMO, stage), score_threshold=0.0)
    found = build_model(stage, config).eval().predict(make_batch(96)["images"])
    assert len(found) == 2
    for boxes, scores in found:
        assert boxes.shape == (len(scores), 4)
        assert 0 < len(scores) <= config.max_boxes
        assert ((boxes >= 0) & (boxes <= 1)).all()
        assert (scores[:-1] >= scores[1:]).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    # from random weights; Faster R-CNN samples its proposals anew in each step, so its losses fall less evenly
    ("stage", "rate", "falls_to"),
    [("rcnn", 1e-3, 0.8), ("yolo", 1e-3, 0.8), ("retinanet", 1e-3, 0.5)],
)
def test_learns_two_images_by_heart(stage, rate, falls_to):
    """One with boxes, one without: every loss stays finite, none is below zero, and their sum falls."""
    torch.manual_seed(0)
    model = build_model(stage, getattr(DEMO, stage)).train()
    optimizer, sums = torch.optim.AdamW(model.parameters(), rate), []
    for _ in range(30):
        losses = model(make_batch(96))
        assert all(torch.isfinite(loss) and loss >= 0 for loss in losses.values())
        optimizer.zero_grad()
        sum(losses.values()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 10)
        optimizer.step()
        sums.append(sum(losses.values()).item())
    assert sum(sums[-5:]) < falls_to * sum(sums[:5])


@pytest.mark.parametrize("stage", DETECTORS)
def test_a_batch_of_images_without_boxes_trains(stage):
    torch.manual_seed(0)
    model = build_model(stage, getattr(DEMO, stage)).train()
    losses = model(make_batch(64) | {"boxes": [torch.empty(0, 4)] * 2})
    assert all(torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("stage", DETECTORS)
def test_reloads_the_same_bytes(stage, tmp_path: Path):
    """A checkpoint rebuilds its model from the file alone: the same tensors bit by bit, and the same boxes."""
    torch.manual_seed(0)
    config, images = getattr(DEMO, stage), make_batch(64)["images"]
    model = build_model(stage, config).eval()
    checkpoints.save(tmp_path / "model.safetensors", model, stage, config)
    name, loaded_config, loaded = checkpoints.load(tmp_path / "model.safetensors")
    assert (name, loaded_config) == (stage, config)
    tensors = loaded.state_dict()
    assert list(tensors) == list(model.state_dict())
    assert all(value.numpy().tobytes() == tensors[key].numpy().tobytes() for key, value in model.state_dict().items())
    for before, after in zip(model.predict(images), loaded.predict(images), strict=True):
        assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))


def with_head_output(model: nn.Module, side: int, boxes: torch.Tensor, surer: float) -> torch.Tensor:
    """Let a RetinaNet's head say `boxes` (fractions) at the anchor nearest to each, with logit `surer` for the first
    and one less for each after it, and -20 everywhere else; returns how well the anchors fit, as IoU."""
    detector = model.detector
    images = torch.zeros(1, 3, side, side)
    maps = list(detector.backbone(images).values())
    (anchors,) = detector.anchor_generator(detector.transform(images)[0], maps)
    fit, nearest = box_iou(boxes * side, anchors).max(dim=1)
    logits, offsets = torch.full((1, len(anchors), 1), -20.0), torch.zeros(1, len(anchors), 4)
    logits[0, nearest, 0] = surer - torch.arange(len(boxes))
    offsets[0, nearest] = detector.box_coder.encode_single(boxes * side, anchors[nearest])
    said = {"cls_logits": logits, "bbox_regression": offsets}
    detector.head.forward = lambda maps: {key: value.expand(len(maps[0]), -1, -1) for key, value in said.items()}
    return fit


@pytest.mark.parametrize("side", [64, 96, 256])
def test_retinanet_round_trip(side):
    """What the head says in offsets from anchors in pixels comes back as the fractions it was, whatever the side."""
    model = build_model("retinanet", DEMO.retinanet).eval()
    with_head_output(model, side, BOXES[0], surer=2.0)
    ((boxes, scores),) = model.predict(torch.zeros(1, 1, side, side, dtype=torch.uint8))
    assert torch.allclose(boxes, BOXES[0], atol=1e-5)
    assert scores.tolist() == pytest.approx([1 / (1 + math.exp(-2)), 1 / (1 + math.exp(-1))])


@pytest.mark.parametrize("box_loss", ["smooth_l1", "GIoU"])
def test_retinanet_losses_are_the_papers(box_loss):
    """Focal loss with alpha 1/4 and gamma 2 (Lin et al. 2017, equation 5), per anchor that is at a box of the batch.

    On the first image one anchor at each of two boxes knows it, so their offsets have no loss; on the second, which has
    no boxes, the same answers are wrong.
    """
    torch.manual_seed(0)
    single = {"anchor_sides": (8, 48, 96), "anchor_scales": (1.0,), "anchor_ratios": (1.0,)}
    model = build_model("retinanet", replace(DEMO.retinanet, box_loss=box_loss, **single)).train()
    # anchors themselves, at corners of cells; no other overlaps them by half
    boxes = torch.tensor([[36.0, 60.0, 44.0, 68.0], [76.0, 20.0, 84.0, 28.0]]) / 128
    assert with_head_output(model, 128, boxes, surer=1.0).tolist() == pytest.approx([1, 1])
    losses = model({"images": torch.zeros(2, 1, 128, 128, dtype=torch.uint8), "boxes": [boxes, BOXES[1]]})
    right = sum(-0.25 * (1 - p) ** 2 * math.log(p) for p in (1 / (1 + math.exp(-1)), 1 / 2))
    wrong = sum(-0.75 * p**2 * math.log(1 - p) for p in (1 / (1 + math.exp(-1)), 1 / 2))
    assert losses["classification"].item() == pytest.approx((right + wrong) / 2, rel=1e-4)
    assert losses["bbox_regression"].item() == pytest.approx(0, abs=1e-6)


def test_retinanet_joins_images_without_mixing_their_boxes():
    """With as many anchors at boxes on each image, the batch's losses are the means of the images' own."""
    torch.manual_seed(0)
    model = build_model("retinanet", DEMO.retinanet).train()
    batch = make_batch(128)
    images, boxes = batch["images"], [BOXES[0][:1], BOXES[0][:1] + torch.tensor([0.25, 0, 0.25, 0])]
    whole = model({"images": images, "boxes": boxes})
    alone = [model({"images": images[k : k + 1], "boxes": boxes[k : k + 1]}) for k in (0, 1)]
    for name, loss in whole.items():
        assert loss.item() == pytest.approx((alone[0][name] + alone[1][name]).item() / 2, rel=1e-4)


@pytest.mark.parametrize(
    ("first_stage", "sides", "maps"),
    [
        (2, 3, [8, 4, 2]),
        (2, 4, [8, 4, 2, 1]),
        (2, 5, [8, 4, 2, 1, 1]),
        (1, 4, [16, 8, 4, 2]),
        (1, 3, None),
        (2, 6, None),
    ],
)
def test_pyramid_has_a_level_for_each_anchor_side(first_stage, sides, maps):
    """Sides of the maps of an image of 64 pixels, finest first; None is refused."""
    config = replace(DEMO.retinanet, first_stage=first_stage, anchor_sides=(32,) * sides)
    if maps is None:
        with pytest.raises(InputError, match=f"anchor_sides names {sides}"):
            Pyramid(config)
        return
    found = list(Pyramid(config)(torch.zeros(1, 3, 64, 64)).values())
    assert [tuple(m.shape) for m in found] == [(1, config.pyramid_channels, side, side) for side in maps]


@pytest.mark.parametrize(("kind", "generalised"), [("GIoU", generalized_box_iou_loss), ("CIoU", complete_box_iou_loss)])
def test_yolo_box_loss_is_torchvisions(kind, generalised):
    """Raw zeros decode to the cell's centre and the anchor's size: the loss is torchvision's for those boxes."""
    config = replace(DEMO.yolo, box_loss=kind)
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
    """YOLO's objectness loss is a mean over images, so accumulation and several processes change nothing."""
    torch.manual_seed(0)
    model = build_model("yolo", DEMO.yolo).train()
    maps = [torch.randn(4, 3, side, side, 6) for side in (8, 4, 2)]
    targets = torch.empty(0, 6)
    whole = model.losses(maps, targets)["objectness"]
    halves = [model.losses([m[a : a + 2] for m in maps], targets)["objectness"] for a in (0, 2)]
    assert whole.item() == pytest.approx((halves[0] + halves[1]).item() / 2, rel=1e-5)


def test_frozen_study_keeps_its_norms():
    model = build_model("study", DEMO.study).train()
    before = {name: tensor.clone() for name, tensor in model.backbone.state_dict().items()}
    model(make_batch(64))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.backbone.state_dict().items())


def test_frozen_norms_compute_the_same():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train()
    network(torch.randn(8, 3, 9, 9))
    network.eval()
    images = torch.randn(2, 3, 9, 9)
    before = network(images)
    assert torch.allclose(backbone.freeze_batch_norm(network)(images), before, atol=1e-6)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())


def test_rcnn_ciou_is_torchvisions_on_decoded_boxes():
    """With the offsets that decode to the truth the loss is 0; with others it is (1 - CIoU) over all sampled boxes."""
    torch.manual_seed(0)
    model = build_model("rcnn", replace(DEMO.rcnn, box_loss="CIoU")).train()
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


def test_level_weights_count_rare_labels_more():
    """Cross entropy as torch defines it with weights: a mean over images, each with the weight of its study label."""
    torch.manual_seed(0)
    model = build_model("study", replace(DEMO.study, dropout=0.0))
    batch = {"features": torch.randn(3, 1280), "study_labels": torch.tensor([0, 1, 1])}
    each = functional.cross_entropy(model.head(batch["features"]), batch["study_labels"], reduction="none")
    model.label_weights = torch.tensor([2.0, 0.5, 1.0, 1.0])
    assert model(batch)["study_label"].item() == pytest.approx(
        ((2 * each[0] + 0.5 * each[1] + 0.5 * each[2]) / 3).item()
    )


def test_importing_yolov5_leaves_the_stack_as_it_is():
    assert "code_context" in inspect.stack()[0].code_context[0]  # the source of this line
