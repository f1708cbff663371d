"""What stands in dataset-metadata.json and kernel-metadata.json, which Kaggle's client reads, and their rules.

kernel_folder.py and build_bundles.py write the files, push_to_kaggle.py uploads with them.

In: the owner's Kaggle name and, for the kernel, the repository's kernel-metadata.json. Out: dictionaries that the
client accepts; what it or the server would refuse is refused here, by name, before anything is uploaded.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from siimcovid.core.errors import InputError
from siimcovid.core.paths import COMPETITION_SLUG
from siimcovid.kaggle import SLUGS

DATASET_FILE = "dataset-metadata.json"
KERNEL_FILE = "kernel-metadata.json"

#: Two T4 GPUs of 15 GB, in Kaggle's words.
MACHINE_SHAPE = "NvidiaTeslaT4"

#: The ending of a kernel that pretrains is this with a number, and what it mounts instead of the competition: NIH
#: ChestX-ray14, a dataset, and the RSNA challenge, whose rules have to be accepted as the competition's.
PRETRAIN = "pre"
NIH_DATASET, RSNA_SLUG = "nih-chest-xrays/data", "rsna-pneumonia-detection-challenge"

#: Characters, both ends included. Kaggle documents 3 to 50 for a slug; its client refuses to create one below 6.
TITLE_LENGTH = (6, 50)
SLUG_LENGTH = (6, 50)
SUBTITLE_LENGTH = (20, 80)
SLUG = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")

#: Title, subtitle, licence (a name that Kaggle knows) and description of each dataset.
DATASETS = {
    "code": (
        "siimcovid: the package",
        "Two detectors and a study classifier for chest radiographs",
        "GPL-3.0",
        "The Python package of the kernel. Research software, not for diagnosis.",
    ),
    "weights": (
        "siimcovid: the weights",
        "safetensors files and the manifest with their checksums",
        "other",
        "manifest.json names the source and the licence of every file.",
    ),
    "wheels": (
        "siimcovid: the wheels",
        "Python packages that Kaggle's image lacks, pinned, with checksums",
        "other",
        "Unchanged wheels of their projects, each under the licence that it carries: yolov5 GPL-3.0, ultralytics "
        "AGPL-3.0, pylibjpeg-libjpeg GPL-3.0, pebble LGPL-3.0, python-gdcm and efficientnet-lite-pytorch Apache-2.0, "
        "the others MIT.",
    ),
}


def dataset_metadata(bundle: str, owner: str) -> dict[str, Any]:
    """The dataset-metadata.json of one of the three datasets."""
    title, subtitle, licence, description = DATASETS[bundle]
    metadata = {
        "id": f"{owner}/{SLUGS[bundle]}",
        "title": title,
        "subtitle": subtitle,
        "description": description,
        "licenses": [{"name": licence}],
    }
    check_dataset(metadata)
    return metadata


def kernel_metadata(
    template: Path, owner: str, code_file: str, ending: str = "", earlier: Sequence[str] = ()
) -> dict[str, Any]:
    """The kernel-metadata.json of the repository for this owner and this notebook (a path beside the result).

    ending: of the slug and the title, "" for none. earlier: endings of the kernels whose output is mounted.
    """
    metadata = read_json(template)
    slug = str(metadata.get("id", "")).rpartition("/")[2]
    metadata |= {
        "id": f"{owner}/{slug}-{ending}".removesuffix("-"),
        "title": f"{metadata.get('title')} {ending}".rstrip(),
        "code_file": code_file,
        "dataset_sources": [f"{owner}/{dataset}" for dataset in SLUGS.values()],
        "kernel_sources": [f"{owner}/{slug}-{other}" for other in earlier],
    }
    if is_pretraining(ending):
        metadata["dataset_sources"].append(NIH_DATASET)
        metadata["competition_sources"] = [RSNA_SLUG]
    check_kernel(metadata, template)
    return metadata


def is_pretraining(ending: str) -> bool:
    """Whether a kernel's ending is that of one that pretrains: "pre-1", "pre-2" …"""
    return re.fullmatch(rf"{PRETRAIN}-\d+", ending) is not None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises InputError where there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} could not be read ({error}); build or restore it") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} must hold a JSON object, not a {type(value).__name__}")
    return value


def check_dataset(metadata: Mapping[str, Any], source: Path | str = DATASET_FILE) -> None:
    """Raise InputError for what `kaggle datasets create` or the server would refuse."""
    _check_identifier(metadata.get("id"), source)
    _check_length(metadata.get("title"), TITLE_LENGTH, "title", source)
    if metadata.get("subtitle"):
        _check_length(metadata["subtitle"], SUBTITLE_LENGTH, "subtitle", source)
    licences = metadata.get("licenses")
    if not isinstance(licences, list) or len(licences) != 1 or not licences[0].get("name"):
        raise InputError(f"{source}: licenses must name exactly one licence, not {licences!r}")


def check_kernel(metadata: Mapping[str, Any], source: Path | str = KERNEL_FILE) -> None:
    """Raise InputError for what `kaggle kernels push` would refuse, or would silently do otherwise than meant.

    The client's own default for enable_internet is true, and a competition refuses a kernel with internet. Without
    machine_shape Kaggle takes a P100, which its PyTorch no longer runs.
    """
    _check_identifier(metadata.get("id"), source)
    slug = metadata["id"].partition("/")[2]
    if re.sub(r"[^a-z0-9]+", "-", str(metadata.get("title")).lower()).strip("-") != slug:
        raise InputError(f"{source}: the title {metadata.get('title')!r} must give the slug {slug!r}")
    wanted = {"enable_gpu": True, "machine_shape": MACHINE_SHAPE, "enable_internet": False}
    wanted |= {"language": "python", "kernel_type": "notebook"}
    for key, value in wanted.items():
        if metadata.get(key) != value:
            raise InputError(f"{source}: {key} must be written out as {json.dumps(value)}, not {metadata.get(key)!r}")
    competition = RSNA_SLUG if re.search(rf"-{PRETRAIN}-\d+$", slug) else COMPETITION_SLUG
    if metadata.get("competition_sources") != [competition]:
        raise InputError(f"{source}: competition_sources must be [{competition!r}]")
    sources = list(metadata.get("dataset_sources") or [])
    if competition == RSNA_SLUG and NIH_DATASET in sources:
        sources.remove(NIH_DATASET)  # somebody else's, with a shorter name than the client now allows
    for identifier in (*sources, *(metadata.get("kernel_sources") or [])):
        _check_identifier(identifier, source)
    if sorted(name.partition("/")[2] for name in sources) != sorted(SLUGS.values()):
        raise InputError(f"{source}: dataset_sources must name {', '.join(SLUGS.values())}, not {sources}")
    if not str(metadata.get("code_file", "")).endswith(".ipynb"):
        raise InputError(f"{source}: code_file must name the notebook, not {metadata.get('code_file')!r}")


def _check_identifier(identifier: Any, source: Path | str) -> None:
    owner, slash, slug = str(identifier).partition("/")
    if not slash or not SLUG.fullmatch(owner) or not SLUG.fullmatch(slug):
        raise InputError(f"{source}: {identifier!r} is no owner/slug of lower-case letters, digits and single hyphens")
    _check_length(slug, SLUG_LENGTH, "slug", source)


def _check_length(text: Any, limits: tuple[int, int], name: str, source: Path | str) -> None:
    if not isinstance(text, str) or not limits[0] <= len(text) <= limits[1]:
        raise InputError(f"{source}: the {name} must have {limits[0]} to {limits[1]} characters, not {text!r}")
