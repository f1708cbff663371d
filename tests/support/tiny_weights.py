"""A weights folder whose models are as small as they get and know nothing, for tests of what stands around them."""

from collections.abc import Sequence
from pathlib import Path

from siimcovid.core import stage_names
from siimcovid.core.presets import load_preset
from siimcovid.kaggle.rehearsal_inputs import TINY_SIDE as SIDE
from siimcovid.kaggle.rehearsal_inputs import write_tiny_weights
from siimcovid.models import weights_manifest


def write_weights(folder: Path, stages: Sequence[str] = stage_names.SUBMISSION_STAGES) -> Path:
    """Write these stages of the small preset at 96 pixels with random weights, and their manifest."""
    return write_tiny_weights(folder, SIDE, stages)


def write_synthetic_weights(top: Path) -> Path:
    """The same in TOP/weights, registered as trained on a synthetic competition, as those of a demo run are."""
    (top / "competition-0.truth").mkdir()
    (top / "competition-0.truth" / "synthetic.json").write_text("{}")
    folder = write_weights(top / "weights")
    for stage in stage_names.SUBMISSION_STAGES:
        path = folder / f"{stage}.safetensors"
        weights_manifest.register_trained(path, stage, load_preset("demo"), top / "competition-0")
    return folder
