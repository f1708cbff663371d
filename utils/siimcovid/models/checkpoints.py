"""Trained models on disk: one safetensors file that carries its configuration and can rebuild its model.

The header of the file holds one entry, `siimcovid`: the stage and its configuration as JSON, so nothing beside the file
is needed; the same JSON lies next to it for people. Nothing here is a pickle.
"""

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from siimcovid.core.configuration import STAGES
from siimcovid.core.errors import InputError
from siimcovid.core.files import atomic_path, write_json
from siimcovid.core.memory_allocator import keep_freed_memory
from siimcovid.core.overrides import from_dict, to_dict
from siimcovid.models.backbone import for_inference
from siimcovid.models.fast_convolutions import with_fast_convolutions
from siimcovid.models.onnx_engine import with_onnx

#: Stages whose module in `siimcovid.models` has another name.
MODULES = {"rcnn": "faster_rcnn", "study": "study_classifier"}


def build_model(stage: str, config: Any) -> nn.Module:
    """The stage's model with random weights: `build` of the stage's module in `siimcovid.models`, one of STAGES.

    Its convolutions are those of fast_convolutions.py. From then on the process keeps the memory of its tensors, see
    memory_allocator.py.
    """
    keep_freed_memory()
    model = importlib.import_module(f"siimcovid.models.{MODULES.get(stage, stage)}").build(config)
    return with_fast_convolutions(model)


def save(path: Path, model: nn.Module, stage: str, config: Any, facts: dict[str, Any] | None = None) -> None:
    """Write `path` (a .safetensors) atomically, and its configuration with further `facts` as JSON beside it."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    settings = to_dict(config)
    header = json.dumps({"stage": stage, "config": settings})
    # Not by safetensors' save_file, whose own temporary file stays where it is killed. There is a single entry of
    # metadata, since several are written in an order of chance.
    with atomic_path(path) as temporary:
        temporary.write_bytes(to_bytes(tensors, metadata={"siimcovid": header}))
    write_json(Path(path).with_suffix(".json"), {"stage": stage, "config": settings, **(facts or {})})


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the header of a safetensors file. Raises InputError for a missing or damaged one."""
    try:
        with safe_open(path, framework="pt") as stream:
            return {name: stream.get_tensor(name) for name in stream.keys()}, dict(stream.metadata() or {})  # noqa: SIM118
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; name a checkpoint that `siimcovid train` or a run wrote") from None
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        raise InputError(f"{path} is no whole safetensors file ({_one_line(error)}); write or copy it again") from None


def load(path: Path) -> tuple[str, Any, nn.Module]:
    """Rebuild a model from its file: (stage, configuration, model in evaluation mode).

    Raises InputError where the file is missing or damaged, is no trained stage, or holds the tensors of another model.
    """
    tensors, header = read_tensors(path)
    try:
        facts = json.loads(header["siimcovid"])
        stage, settings = facts["stage"], facts["config"]
        kind = STAGES[stage]
    except (KeyError, TypeError, ValueError):
        raise InputError(
            f"{path} is no trained stage of siimcovid: its header names no stage and configuration; name a checkpoint "
            "that `siimcovid train` or a run wrote"
        ) from None
    try:
        config = from_dict(kind, settings)
        model = build_model(stage, config)
    except InputError as error:
        raise InputError(f"{path} cannot be rebuilt ({error}); train it again with this version") from None
    if mismatch := difference(model.state_dict(), tensors):
        raise InputError(
            f"{path} does not fit the model that its header describes ({mismatch}); train it again or copy the original"
        )
    model.load_state_dict(tensors)
    return stage, config, model.eval()


def load_for_inference(path: Path, stage: str) -> tuple[Any, nn.Module]:
    """The configuration of a trained stage, and its model prepared by `for_inference` and, on the CPU, `with_onnx`.

    Raises InputError as `load` does, and where the file is of another stage or holds a number that is not finite.
    """
    found, config, model = load(path)
    if found != stage:
        raise InputError(f"{path} holds stage {found}, not {stage}; name the weights folder that a run wrote")
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise InputError(f"{path}: the weights {name} hold numbers that are not finite; train stage {stage} again")
    return config, with_onnx(stage, for_inference(model), path)


def is_marked_finished(path: Path) -> bool:
    """Whether the JSON beside a checkpoint says that its training came to its end."""
    try:
        return json.loads(Path(path).with_suffix(".json").read_text(encoding="utf-8"))["finished"] is True
    except (OSError, ValueError, KeyError, TypeError):
        return False


def difference(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str:
    """How a file's tensors differ in names and shapes from a model's, in a few words; "" where they are the same."""
    missing = [name for name in own if name not in given]
    unknown = [name for name in given if name not in own]
    reshaped = [name for name in own if name in given and own[name].shape != given[name].shape]
    parts = [
        f"{len(names)} tensors {what}, the first {names[0]}"
        for names, what in ((missing, "are missing"), (unknown, "are unknown"), (reshaped, "have another shape"))
        if names
    ]
    return ", ".join(parts)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
