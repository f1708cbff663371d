"""What others publish as .pth or .pt files, read without running the code that their pickles name.

In: a file of torch of any age, with a state dict or a whole pickled model. Out: its tensors by name.
"""

import io
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from siimcovid.core.errors import InputError
from siimcovid.models import pickled_modules


class _Inert:
    """Stands for a class or function that a pickle names: takes its arguments and state, and runs nothing.

    numpy's scalars and arrays are among them, as YOLOv5's checkpoints hold one in `best_fitness`.
    """

    def __new__(cls, *args: Any, **named: Any) -> "_Inert":
        return super().__new__(cls)

    def __init__(self, *args: Any, **named: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        for part in state if isinstance(state, tuple) else (state,):  # (state, slots) of classes with __slots__
            if isinstance(part, dict):
                vars(self).update({name: value for name, value in part.items() if isinstance(name, str)})


def read_published(path: Path) -> dict[str, Tensor]:
    """The state dict in a published .pth or .pt file, without running any code that the file names.

    The file may hold a state dict, a dict with one under "state_dict" or "model", or a whole pickled model, in which
    case every class is replaced by an inert stand-in and the tensors are collected from the stand-ins' state. Floating
    point tensors are returned as float32. Raises InputError where the file is missing, damaged or holds no weights.
    """
    require_file(path)
    try:
        loaded = _load(path)
    except Exception:  # a pickle can fail in every way there is, and torch's own message advises to run its code
        raise unreadable(path) from None
    tensors = _tensors(loaded)
    if not tensors:
        raise InputError(f"{path} holds no weights: name the file that its authors publish, .pth or .pt")
    floats = OrderedDict((name, t.float() if t.is_floating_point() else t) for name, t in tensors.items())
    if hasattr(tensors, "_metadata"):  # the modules' versions, by which torch reads what older ones wrote
        floats._metadata = tensors._metadata
    return floats


def require_file(path: Path) -> None:
    """Raise InputError where there is no such file."""
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise InputError(f"{path} {what}; name the published weights' file with --file")


def unreadable(path: Path) -> InputError:
    """The error for a file that is damaged or of another kind."""
    return InputError(
        f"{path} cannot be read as published weights: it is cut short, damaged or no file of PyTorch's; "
        "download it again"
    )


def _load(path: Path) -> Any:
    """What torch.load makes of a file with weights_only; all classes and functions that it names are stand-ins."""
    source: Path | io.BytesIO = path
    if zipfile.is_zipfile(path):
        names = set(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    else:  # of torch before 1.6
        content, names = pickled_modules.readable(path.read_bytes())
        source = io.BytesIO(content)
    stand_ins: list[Any] = [(type("Inert", (_Inert,), {}), name) for name in sorted(names)]
    stand_ins += [(pickled_modules.class_of, pickled_modules.CALLED)]
    with torch.serialization.safe_globals(stand_ins):
        return torch.load(source, map_location="cpu", weights_only=True)


def _tensors(loaded: Any) -> dict[str, Tensor]:
    """The state dict in what torch.load returned, {} where there is none. Averaged weights ("ema") go first."""
    if isinstance(loaded, _Inert):
        return dict(_parameters(loaded, ""))
    if not isinstance(loaded, dict):
        return {}
    if loaded and all(isinstance(value, Tensor) for value in loaded.values()):
        return loaded
    inner = (loaded.get(key) for key in ("ema", "model", "state_dict"))
    return next((tensors for value in inner if value is not loaded and (tensors := _tensors(value))), {})


def _parameters(module: Any, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of an inert module tree, as state_dict would name them."""
    state = vars(module)
    for kind in ("_parameters", "_buffers"):
        for name, tensor in _entries(state.get(kind)):
            if isinstance(tensor, Tensor) and name not in (state.get("_non_persistent_buffers_set") or ()):
                yield prefix + name, tensor.detach()
    for name, child in _entries(state.get("_modules")):
        if isinstance(child, _Inert):
            yield from _parameters(child, f"{prefix}{name}.")


def _entries(mapping: Any) -> list[tuple[str, Any]]:
    return list(mapping.items()) if isinstance(mapping, dict) else []
