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
    preset = load_preset("demo", sides)
    for stage in stages:
        torch.manual_seed(0)
        config = getattr(preset, stage)
        path = folder / f"{stage}.safetensors"
        checkpoints.save(path, checkpoints.build_model(stage, config), stage, config)
        weights_manifest.register_trained(path, stage, preset, "nothing")
    return folder


def write_synthetic_weights(top: Path) -> Path:
    """The same in TOP/weights, registered as trained on a synthetic competition, as those of a demo run are."""
    (top / "competition-0.truth").mkdir()
    (top / "competition-0.truth" / "synthetic.json").write_text("{}")
    folder = write_weights(top / "weights")
    for stage in stage_names.SUBMISSION_STAGES:
        path = folder / f"{stage}.safetensors"
        weights_manifest.register_trained(path, stage, load_preset("demo"), top / "competition-0")
    return folder
