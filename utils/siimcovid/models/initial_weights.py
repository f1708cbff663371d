"""The weights that a stage's training starts from: the best that a weights folder offers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from siimcovid.core.errors import InputError
from siimcovid.models.backbone import Backbone
from siimcovid.models.checkpoints import is_marked_finished, read_tensors
from siimcovid.models.input_scaling import first_convolution
from siimcovid.models.weights_manifest import MANIFEST, read_manifest, verified


def start_file(stage: str, config: Any, folder: Path, out: Path | None = None) -> tuple[Path, str]:
    """The best file that a stage can start from: its path and its SHA-256 in the manifest beside it.

    In this order: of `folder` the stage as it was trained before and a whole pretrained YOLOv5; with `study_backbone`
    the study model that was trained into `out`, for the sake of its backbone; of `folder` a backbone that stage
    `backbone` trained, a whole Faster R-CNN as published, a backbone as published. Where the stage is trained into this
    same folder, `out`, what it left there before is no start: the same command gives the same weights.

    Raises InputError where there is none of them.
    """
    folder, manifest = Path(folder), read_manifest(folder)
    if out is not None and Path(out).resolve() == folder.resolve():
        manifest.pop(f"{stage}.safetensors", None)
    names = [f"{stage}.safetensors"]
    published = config.backbone if _is_on_backbone(stage, config) else config.architecture
    if manifest.get(names[0], {}).get("architecture", published) != published:
        del manifest[names[0]]  # a model with another network is no start: few of its tensors would fit
    if _is_on_backbone(stage, config) and stage != "backbone":
        if names[0] not in manifest and (adapted := _study_model(config, out)):
            return adapted
        if manifest.get("backbone.safetensors", {}).get("architecture") == config.backbone:
            names.append("backbone.safetensors")
    if stage == "rcnn":
        names.append(f"fasterrcnn_{published}.safetensors")
    names.append(f"{published}.safetensors")
    name = next((name for name in names if name in manifest), None)
    if name is None:
        wanted = names[-1].removesuffix(".safetensors")
        raise InputError(
            f"{folder} has no weights to start stage {stage} from ({' or '.join(names)}); make them with "
            f"`siimcovid weights import {wanted} --out {folder}`"
        )
    return folder / name, manifest[name]["sha256"]


def _study_model(config: Any, out: Path | None) -> tuple[Path, str] | None:
    """The finished study model in a folder and its SHA-256, where a detector is to start from its backbone."""
    if out is None or not getattr(config, "study_backbone", False) or not (Path(out) / MANIFEST).is_file():
        return None
    path = Path(out) / "study.safetensors"
    entry = read_manifest(Path(out)).get(path.name)
    if entry is None or entry.get("architecture") != config.backbone or not is_marked_finished(path):
        return None
    return path, entry["sha256"]


def start(stage: str, config: Any, model: nn.Module, folder: Path, out: Path | None = None) -> dict[str, Any]:
    """Put the best weights that there are for a stage (see `start_file`) into its model, and name what was done.

    Tensors of other names or shapes are left as they are (the report's non-strict loading, section 3.4).

    Returns:
        {"file", "taken": number of tensors, "left": names of the model's tensors that keep their random values}.

    Raises:
        InputError: there are none, or they are damaged.
    """
    path, _ = start_file(stage, config, folder, out)
    name = path.name
    tensors, _ = read_tensors(verified(path.parent, name))
    trained = name in ("backbone.safetensors", "study.safetensors") and name != f"{stage}.safetensors"
    if trained or (name == f"{config.backbone}.safetensors" and _is_on_backbone(stage, config)):
        if trained:
            prefix = "backbone."
            tensors = {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}
        places = [place for place, module in model.named_modules() if isinstance(module, Backbone)]
        tensors = {f"{place}.{key}": tensor for place in places for key, tensor in tensors.items()}
    own = model.state_dict()
    taken = {key: tensor for key, tensor in tensors.items() if key in own and own[key].shape == tensor.shape}
    for place, module in model.named_modules():
        if isinstance(module, Backbone):
            _require_first_convolution(path, f"{place}.{first_convolution(module)[0]}.weight", own, tensors)
    if not taken:
        raise InputError(f"{path} fits no part of stage {stage}; is it of another preset?")
    model.load_state_dict(taken, strict=False)
    return {"file": name, "taken": len(taken), "left": sorted(set(own) - set(taken))}


def _require_first_convolution(path: Path, key: str, own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Raise InputError where a file has not the convolution that takes the images: all behind it would mean nothing."""
    found = "missing" if key not in tensors else "x".join(map(str, tensors[key].shape))
    wanted = "x".join(map(str, own[key].shape))
    if found != wanted:
        raise InputError(
            f"{path} does not fit: its first convolution is {found}, not {wanted}; import the published file "
            "again with `siimcovid weights import`"
        )


def _is_on_backbone(stage: str, config: Any) -> bool:
    """Whether the stage's model holds a Backbone; a YOLOv5 with its own first layers does not."""
    return not (stage == "yolo" and not config.backbone)
