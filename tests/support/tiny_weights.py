"""A weights folder whose models are as small as they get and know nothing, for tests of what stands around them."""

from collections.abc import Sequence
from pathlib import Path

import torch

from siimcovid.core import stage_names
from siimcovid.core.presets import load_preset
from siimcovid.models import checkpoints, weights_manifest

SIDE = 96


def write_weights(folder: Path, stages: Sequence[str] = stage_names.SUBMISSION_STAGES) -> Path:
    """Write these stages of the small preset at 96 pixels with random weights, and their manifest."""
    sides = {f"{stage}.{key}": SIDE for stage in checkpoints.STAGES for key in ("size", "infer_size")}
    preset = load_preset("small", sides)
    for stage in stages:
        torch.manual_seed(0)
        config = getattr(preset, stage)
        path = folder / f"{stage}.safetensors"
        checkpoints.save(path, checkpoints.build_model(stage, config), stage, config)
        weights_manifest.register_trained(path, stage, preset, "nothing")
    return folder
