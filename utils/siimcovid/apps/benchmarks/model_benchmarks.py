"""Benchmarks of the models in the `full` preset, with random weights: a kernel's time does not depend on them."""

import copy
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import torch
from torch import nn
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from siimcovid.apps.benchmarks import Measured, best, race, timed
from siimcovid.core.configuration import StudyConfig
from siimcovid.core.overrides import override
from siimcovid.core.presets import DEMO, FULL
from siimcovid.data.datasets import ImageDataset, loader
from siimcovid.data.resize import centre_crop
from siimcovid.data.samplers import EpochSampler
from siimcovid.inference.predictor import predict_images
from siimcovid.models import checkpoints
from siimcovid.models.backbone import IMAGENET_MEAN, IMAGENET_STD, for_inference
from siimcovid.models.flops import forward_flops
from siimcovid.models.onnx_engine import with_onnx
from siimcovid.synthetic.anatomy import Anatomy
from siimcovid.synthetic.radiograph import render
from siimcovid.training.frozen_features import FrozenFeatures

COLUMNS = ["score", "x1", "y1", "x2", "y2"]


def write_images(folder: Path, count: int, side: int) -> pd.DataFrame:
    """Write synthetic images as the cache's pictures; returns their index."""
    study_probs = ["typical", "negative"] * count
    for k in range(count):
        pixels = render(Anatomy.draw(k), study_probs[k], 1 - k % 2, (side, side), k).pixels
        cv2.imwrite(str(folder / f"{k}.png"), (pixels * 255).astype(np.uint8))
    names = [str(k) for k in range(count)]
    return pd.DataFrame(
        {"image_id": names, "study_id": names, "boxes": [[]] * count, "study_label": study_probs[:count]}
    )


def matrix_speed() -> float:
    """Floating-point forward_flops per second of a large matrix product: what convolutions can reach at best."""
    side = 2048
    matrix = torch.randn(side, side)
    return 2 * side**3 / best(lambda: matrix @ matrix, 5, "wall")


def spread(layer: nn.Module, gain: float) -> None:
    """Enlarge a random layer's weights, so that its scores differ by more than rounding and have one order."""
    with torch.no_grad():
        layer.weight.mul_(gain)


def predictor(stage: str, config: Any, model: nn.Module, images: pd.DataFrame, folder: Path) -> Callable:
    """Predicting the images as the kernel does, by graphs that are exported before."""
    fast = with_onnx(stage, for_inference(model), folder / stage)
    side = config.augment.crop or config.infer_size
    fast.predict(torch.zeros((1, 1, side, side), dtype=torch.uint8))
    return lambda: predict_images(stage, config, fast, images, folder, progress=False).table


def infer_rcnn() -> Measured:
    """The report's Faster R-CNN at 1024 pixels."""
    config, count = override(FULL.rcnn, {"score_threshold": 0.05}), 2
    torch.manual_seed(0)
    model = checkpoints.build_model("rcnn", config).eval()
    spread(model.detector.rpn.head.cls_logits, 100)
    spread(model.detector.roi_heads.box_predictor.cls_score, 10)
    # the plain loop is torchvision's own Faster R-CNN, its transform included, on the same weights
    plain = copy.deepcopy(model.detector).to(memory_format=torch.contiguous_format)
    plain.transform = GeneralizedRCNNTransform(config.infer_size, config.infer_size, IMAGENET_MEAN, IMAGENET_STD)
    with tempfile.TemporaryDirectory() as folder:
        images = write_images(Path(folder), count, config.infer_size)

        @torch.inference_mode()
        def loop() -> list[np.ndarray]:
            found = []
            for name in images["image_id"]:
                pixels = cv2.imread(str(Path(folder, f"{name}.png")), cv2.IMREAD_COLOR_RGB)
                (output,) = plain([torch.from_numpy(pixels).permute(2, 0, 1).float().contiguous() / 255])
                found.append(torch.hstack([output["scores"][:, None], output["boxes"] / config.infer_size]).numpy())
            return found

        raced = race(loop, predictor("rcnn", config, model, images, Path(folder)), 2, "wall")
    for name, theirs in zip(images["image_id"], raced.baseline, strict=True):
        ours = raced.ours[raced.ours["image_id"] == name][COLUMNS].to_numpy()
        assert len(ours) == len(theirs) > 0, f"{len(ours)} boxes instead of {len(theirs)}"
        assert np.abs(ours - theirs).max() < 1e-3, f"boxes differ by {np.abs(ours - theirs).max()}"
    side = config.infer_size
    flops = forward_flops("rcnn", config, side)
    return Measured(
        f"Faster R-CNN, ResNeXt-101 32x8d, {side} pixels",
        "torchvision, one image at a time",
        "image",
        raced.baseline_s / count,
        raced.ours_s / count,
        "wall",
        {"arithmetic": flops / matrix_speed()},
        {"boxes compared": len(raced.ours), "billion forward_flops": flops / 1e9},
    )


def infer_study() -> Measured:
    """The report's study model."""
    config, count = FULL.study, FULL.study.infer_batch
    torch.manual_seed(0)
    model = checkpoints.build_model("study", config).eval()
    plain = copy.deepcopy(model).to(memory_format=torch.contiguous_format)
    mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    with tempfile.TemporaryDirectory() as folder:
        images = write_images(Path(folder), count, config.infer_size)

        @torch.inference_mode()
        def loop() -> np.ndarray:
            found = []
            for name in images["image_id"]:
                pixels = cv2.imread(str(Path(folder, f"{name}.png")), cv2.IMREAD_COLOR_RGB)
                pixels = centre_crop(torch.from_numpy(pixels).permute(2, 0, 1), config.augment.crop)
                image = (pixels.float().contiguous() / 255 - mean) / deviation
                features = plain.backbone(image[None])[-1].mean(dim=(2, 3))
                found.append(torch.softmax(plain.head(features), dim=1)[0].numpy())
            return np.array(found)

        raced = race(loop, predictor("study", config, model, images, Path(folder)), 3, "wall")
    difference = np.abs(raced.ours.iloc[:, 2:].to_numpy() - raced.baseline).max()
    assert difference < 1e-4, f"probabilities differ by {difference}"
    flops = forward_flops("study", config, config.augment.crop)
    return Measured(
        f"study model, ResNeXt-101 32x8d, {config.augment.crop} pixels",
        "torchvision, one image at a time",
        "image",
        raced.baseline_s / count,
        raced.ours_s / count,
        "wall",
        {"arithmetic": flops / matrix_speed()},
        {"billion forward_flops": flops / 1e9},
    )


def study_frozen() -> Measured:
    """An epoch of the frozen study model, in the `small` preset and without augmentation."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    config = override(DEMO.study, {"views": 1, "dropout": 0.0})
    count, held_out = 48, 16
    torch.manual_seed(0)
    start = checkpoints.build_model("study", config)
    with tempfile.TemporaryDirectory() as folder:
        images = write_images(Path(folder), count + held_out, config.size)
        samples, others = (ImageDataset(part, Path(folder), config.size) for part in (images[:count], images[count:]))
        [samples[k] for k in range(count)]  # decoded, as in every epoch but the first
        features, once = timed(lambda: FrozenFeatures(samples, start, 1, config.infer_batch), "processor")
        held_out_features = FrozenFeatures(others, start, 1, config.infer_batch)
        slow = race(
            lambda: epoch(config, start, samples, others), lambda: epoch(config, start, features, held_out_features), 2,
            "processor",
        )  # fmt: skip
        # an epoch on features is short: more rounds for its best
        fast = best(lambda: epoch(config, start, features, held_out_features), 10, "processor")
    torch.set_num_threads(threads)
    assert abs(slow.baseline - slow.ours) < 1e-4, f"validation loss {slow.ours} instead of {slow.baseline}"
    return Measured(
        f"study model's epoch on features of a frozen backbone, {count} images and {held_out} held out",
        "running the backbone in every epoch",
        "epoch",
        slow.baseline_s,
        min(slow.ours_s, fast),
        "processor",
        {},
        {"seconds for the features, once": once, "validation loss": slow.ours},
    )


def epoch(config: StudyConfig, start: nn.Module, dataset: object, held_out: object) -> float:
    """Train the head for an epoch from `start`; returns the loss on the images held out."""
    model = copy.deepcopy(start).train()
    optimizer = torch.optim.AdamW(model.head.parameters(), config.training.learning_rate)
    for batch in loader(dataset, config.training.batch, EpochSampler(len(dataset), 0)):
        optimizer.zero_grad()
        model(batch)["study_label"].backward()
        optimizer.step()
    model.eval()
    with torch.inference_mode():
        return float(np.mean([model(batch)["study_label"].item() for batch in loader(held_out, len(held_out))]))
