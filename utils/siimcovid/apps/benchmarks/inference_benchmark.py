"""Predictions of the three models of preset `small` on the CPU: by PyTorch as trained and as made for inference, and by
ONNX Runtime.

Same images, same batches, suppression included. The backbones have their ImageNet weights: random ones make numbers so
small that PyTorch's arithmetic slows down to a fraction (denormal numbers). The heads are random, so the detectors find
more boxes than trained ones, and suppression takes longer than it does for these.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from siimcovid.apps.benchmarks import Measured
from siimcovid.apps.benchmarks.model_benchmarks import write_images
from siimcovid.core.presets import SMALL
from siimcovid.core.stage_names import SUBMISSION_STAGES
from siimcovid.data.image_memory import ImageMemory
from siimcovid.inference.predictor import predict_images
from siimcovid.models import checkpoints, initial_weights, published_weights
from siimcovid.models.backbone import for_inference
from siimcovid.models.onnx_engine import OnnxModel

IMAGES = 16
ROUNDS = 3

#: How much a box's corners and score, and a probability, may differ between the contenders; and the share of boxes that
#: may differ more, since a random head gives many boxes nearly one score, and rounding decides which one suppresses the
#: other.
TOLERANCE, CHANGED = 1e-3, 0.05

CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}

EAGER, PREPARED, RUNTIME = "PyTorch as trained", "PyTorch made for inference", "ONNX Runtime"


def infer_small() -> Measured:
    """An image through all three models: PyTorch as trained against ONNX Runtime, with each contender's seconds."""
    taken: dict[str, dict[str, np.ndarray]] = {}
    with tempfile.TemporaryDirectory() as folder:
        images = write_images(Path(folder), IMAGES, SMALL.cache_size)
        published_weights.import_weights(SMALL.study.backbone, None, Path(folder, "imagenet"))
        for stage in SUBMISSION_STAGES:
            taken[stage] = race_stage(stage, images, Path(folder))
    # contender -> (ROUNDS, clocks): seconds of an image
    totals = {name: sum(of[name] for of in taken.values()) for name in (EAGER, PREPARED, RUNTIME)}
    ratios = totals[EAGER] / totals[RUNTIME]
    notes = {f"{stage}, {name}": seconds[:, 0].min() for stage, of in taken.items() for name, seconds in of.items()}
    notes |= {f"all, {PREPARED}": totals[PREPARED][:, 0].min()}
    for number, clock in enumerate(CLOCKS):
        notes |= {f"ratio in {clock} seconds, {end.__name__} of rounds": end(ratios[:, number]) for end in (min, max)}
    baseline, ours = (float(totals[name][:, 0].min()) for name in (EAGER, RUNTIME))
    return Measured(
        "preset small, three models, boxes suppressed",
        f"{EAGER}, the same batches",
        "image",
        baseline,
        ours,
        "wall",
        {},
        {name: float(value) for name, value in notes.items()},
    )


def build(stage: str, config: Any, imagenet: Path) -> nn.Module:
    """A stage's model on the ImageNet backbone, with random heads."""
    torch.manual_seed(0)
    model = checkpoints.build_model(stage, config).eval()
    initial_weights.start(stage, config, model, imagenet)
    return model


def race_stage(stage: str, images: pd.DataFrame, folder: Path) -> dict[str, np.ndarray]:
    """Contender -> (ROUNDS, CLOCKS), its seconds an image; they take turns after one round that is not counted.

    Raises AssertionError where they do not predict the same.
    """
    config = getattr(SMALL, stage)
    model = build(stage, config, folder / "imagenet")
    prepared = for_inference(model)
    contenders = {EAGER: model, PREPARED: prepared, RUNTIME: OnnxModel(stage, prepared, folder / stage)}
    memory = ImageMemory(1 << 28)

    def work(network: nn.Module) -> Callable[[], pd.DataFrame]:
        arguments = stage, config, network, images, folder
        return lambda: predict_images(*arguments, device="cpu", memory=memory, progress=False).table

    tables = [work(network)() for network in contenders.values()]
    assert contenders[RUNTIME]._sessions is not None, "ONNX Runtime did not predict"
    for table in tables[1:]:
        assert_alike(tables[0], table)
    taken: dict[str, list[list[float]]] = {name: [] for name in contenders}
    for _ in range(ROUNDS):
        for name, network in contenders.items():
            begin = [clock() for clock in CLOCKS.values()]
            work(network)()
            taken[name].append([clock() - start for clock, start in zip(CLOCKS.values(), begin, strict=True)])
    return {name: np.array(seconds) / len(images) for name, seconds in taken.items()}


def assert_alike(one: pd.DataFrame, other: pd.DataFrame) -> None:
    """All rows but CHANGED have one of the same image in the other table that differs by less than TOLERANCE."""
    assert abs(len(one) - len(other)) <= CHANGED * len(one), f"{len(other)} rows instead of {len(one)}"
    alone = 0
    for (name, rows), (same, others) in zip(one.groupby("image_id"), other.groupby("image_id"), strict=True):
        assert name == same
        values, their_values = (table.select_dtypes("number").to_numpy() for table in (rows, others))
        apart = np.abs(values[:, None] - their_values[None]).max(axis=2)
        alone += max((apart.min(axis=k) >= TOLERANCE).sum() for k in (0, 1))
    assert alone <= CHANGED * len(one), f"{alone} of {len(one)} rows differ by {TOLERANCE} or more"
