"""The trained models of a weights folder, ready to predict.

In: a folder with manifest.json and `<stage>.safetensors` files. Out: `LoadedModels`.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from siimcovid.core import stage_names
from siimcovid.core.configuration import Preset
from siimcovid.core.device import choose_device
from siimcovid.core.errors import InputError
from siimcovid.core.overrides import override
from siimcovid.core.presets import PRESETS, SMALL
from siimcovid.inference import fit_ensemble
from siimcovid.inference.weighted_boxes_fusion import ENSEMBLE
from siimcovid.models import checkpoints, weights_manifest
from siimcovid.models.backbone import for_inference

#: Suffix of a detector's name for its predictions on horizontally mirrored images.
HFLIP = "_hflip"

#: Name of the stage that predicts the study labels; every other stage is a detector.
STUDY = "study"


@dataclass(frozen=True)
class Stage:
    """A trained stage: its configuration and its model."""

    config: Any
    model: nn.Module


@dataclass(frozen=True)
class LoadedModels:
    """Trained stages on the device that runs them."""

    stages: dict[str, Stage]  # detectors and STUDY, those that are there
    preset: Preset  # how their predictions are combined
    device: torch.device
    sources: tuple[str, ...] = ()  # where the weights come from, as their manifest says

    @property
    def detectors(self) -> list[str]:
        """The detectors that are there, in the order of the preset."""
        return [name for name in self.preset.fusion.detectors if name in self.stages]

    @property
    def box_models(self) -> list[str]:
        """What boxes are offered of: each detector and, where there are several, their ensemble."""
        return [*self.detectors, ENSEMBLE] if len(self.detectors) > 1 else self.detectors

    @property
    def ensemble_members(self) -> list[str]:
        """The models that the fusion combines: each detector and, with `hflip_tta`, each on the mirrored image too.

        A detector alone is not mirrored: without an ensemble its boxes are shown as they are.
        """
        hflips = self.preset.fusion.hflip_tta and ENSEMBLE in self.box_models
        return [*self.detectors, *(f"{name}{HFLIP}" for name in self.detectors if hflips)]

    def autocast(self) -> torch.autocast:
        """Mixed precision on a GPU, as everywhere where images are predicted."""
        return torch.autocast(self.device.type, enabled=self.device.type == "cuda")


def for_serving(stages: dict[str, Stage], preset: Preset = SMALL, sources: tuple[str, ...] = ()) -> LoadedModels:
    """Move trained stages to the default device and prepare them for inference."""
    device = choose_device()
    ready = {name: replace(stage, model=for_inference(stage.model.to(device))) for name, stage in stages.items()}
    return LoadedModels(ready, preset, device, sources)


def load_models(folder: Path) -> LoadedModels:
    """Load every trained stage of a folder, its checksum verified, with the preset of its manifest and the fitted
    ensemble that lies beside it.

    Raises InputError where there is no trained stage or a file is damaged.
    """
    manifest = weights_manifest.read_manifest(folder)
    stages, preset, wanted = {}, "", [f"{name}.safetensors" for name in (*stage_names.DETECTORS, STUDY)]
    for name in wanted:
        if manifest.get(name, {}).get("preset"):
            stage, config, model = checkpoints.load(weights_manifest.verified(folder, name))
            stages[stage] = Stage(config, model)
            preset = preset or manifest[name]["preset"]
    if not stages:
        raise InputError(f"{folder} holds no trained stage ({', '.join(wanted)}): name the weights/ of a training run")
    sources = tuple(dict.fromkeys(manifest[f"{stage}.safetensors"].get("source", "unknown") for stage in stages))
    return for_serving(stages, override(PRESETS.get(preset, SMALL), fit_ensemble.read(folder)).check(), sources)
