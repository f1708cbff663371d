"""What is another way where a stage is trained on NIH ChestX-ray14 or the RSNA challenge before the competition.

In: the preset, the stage and the kind of data set (dataset_readers.py). Out: changes to the preset, and the images that
are worth preparing. Of RSNA's 26,684 images only the 6,012 with boxes are trained on.
"""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from siimcovid.core.configuration import Preset, Training
from siimcovid.core.overrides import override
from siimcovid.data.dataset_readers import Kind


def changes(preset: Preset, stage: str, kind: Kind) -> dict[str, Any]:
    """Overrides of a preset: the stage's epochs on RSNA, and the size of the data set's own prepared images."""
    if kind == "competition":
        return {}
    size = preset.nih_cache_size if kind == "nih" else preset.rsna_cache_size
    found: dict[str, Any] = {"cache_size": size} if size else {}
    if kind == "rsna":
        found[f"{stage}.training.epochs"] = getattr(preset, stage).rsna_epochs
    return found


def preset_for(preset: Preset, settings: Mapping[str, Any], stage: str, kind: Kind) -> Preset:
    """A preset with `settings` for training a stage on a data set: `changes`, unless the settings name other values."""
    preset = override(preset, settings)
    return override(override(preset, changes(preset, stage, kind)), settings)


def wanted_images(images: pd.DataFrame, training: Training, kind: Kind) -> pd.DataFrame:
    """The images that have to be prepared: of RSNA those with boxes, unless epochs are chosen on a fold of all."""
    return images[images["annotated"]] if kind == "rsna" and not training.validate else images
