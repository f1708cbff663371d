"""Trained models on disk: one safetensors file that carries its configuration and can rebuild its model.

The header of the file holds one entry, `siimcovid`: the stage and its configuration as JSON, so nothing beside the file
is needed; the same JSON lies next to it for people. Nothing here is a pickle.
"""

import importlib
import json
import re
from pathlib import Path
from typing import Any, get_args

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from siimcovid.core.configuration import STAGES, Detector
from siimcovid.core.configuration import SUBMISSION_STAGES as SUBMISSION_STAGES  # for those who read checkpoints
from siimcovid.core.errors import InputError
from siimcovid.core.files import atomic_path, write_json
from siimcovid.core.overrides import from_dict, to_dict

#: The detectors there are; preset.fusion.detectors says which of them run.
DETECTORS: tuple[str, ...] = get_args(Detector)

#: Stages whose module in `siimcovid.models` has another name.
MODULES = {"rcnn": "faster_rcnn", "study": "study_classifier"}


def member(stage: str, number: int) -> str:
    """Name of a member of a stage's fold ensemble: "rcnn", "rcnn.1", "rcnn.2" and so on."""
    return f"{stage}.{number}" if number else stage


def stage_of(name: str) -> str:
    """The stage of a member, or of its look at mirrored images: "rcnn" of "rcnn", "rcnn.1" and "rcnn.1_hflip"."""
    return re.sub(r"(\.\d+)?(_hflip)?$", "", name)


def build_model(stage: str, config: Any) -> nn.Module:
    """The stage's model with random weights; a stage of configs.STAGES is built by a module of `siimcovid.models`."""
    return importlib.import_module(f"siimcovid.models.{MODULES.get(stage, stage)}").build(config)


def save(path: Path, model: nn.Module, stage: str, config: Any, facts: dict[str, Any] | None = None) -> None:
    """Write `path` (a .safetensors) atomically, and its configuration with further `facts` as JSON beside it."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    settings = to_dict(config)
    header = json.dumps({"stage": stage, "config": settings})
    with atomic_path(path) as temporary:  # a single entry, since safetensors writes several in an order of chance
        save_file(tensors, temporary, metadata={"siimcovid": header})
    write_json(Path(path).with_suffix(".json"), {"stage": stage, "config": settings, **(facts or {})})


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the header of a safetensors file. Raises InputError for a missing or damaged one."""
    try:
        with safe_open(path, framework="pt") as stream:
            return {name: stream.get_tensor(name) for name in stream.keys()}, dict(stream.metadata() or {})  # noqa: SIM118
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is no whole safetensors file ({error}); write or copy it again") from None


def load(path: Path) -> tuple[str, Any, nn.Module]:
    """Rebuild a model from its file: (stage, configuration, model in evaluation mode)."""
    tensors, header = read_tensors(path)
    try:
        facts = json.loads(header["siimcovid"])
        stage, settings = facts["stage"], facts["config"]
        kind = STAGES[stage]
    except (KeyError, TypeError, ValueError):
        raise InputError(
            f"{path} is no trained stage of siimcovid: its header names no stage and configuration"
        ) from None
    config = from_dict(kind, settings)
    model = build_model(stage, config)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise InputError(f"{path} does not fit the model that its header describes: {error}") from None
    return stage, config, model.eval()
