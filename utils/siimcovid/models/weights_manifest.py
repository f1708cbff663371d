"""The manifest of a weights folder: what each file is, where it comes from, and its checksum.

`manifest.json` is an object, file name -> {stage, architecture, sha256, source, licence, preset}, with images:
"synthetic" where the training images were drawn, and for imported files weights (their name in the catalogue) and
published_sha256 (of the file that was imported). Stage `backbone` is a pretrained network, `yolo` a pretrained YOLOv5,
`rcnn` a pretrained Faster R-CNN; `rcnn`, `yolo`, `study` with a configuration in their header are trained models.
"""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from siimcovid.core.configuration import Preset
from siimcovid.core.errors import InputError
from siimcovid.core.files import sha256, write_json

MANIFEST = "manifest.json"

#: How the source of a trained stage begins; what it was trained on follows.
TRAINED_ON = "trained by siimcovid on "

#: The entry `images` of a stage that was trained on drawn images.
SYNTHETIC = "synthetic"


def register(path: Path, **entry: str) -> None:
    """Enter a weights file into the manifest beside it, with its checksum; processes take turns."""
    folder, checksum = Path(path).parent, sha256(path)
    with _locked(folder):
        manifest = read_manifest(folder) if (folder / MANIFEST).is_file() else {}
        manifest[Path(path).name] = {**entry, "sha256": checksum}
        write_json(folder / MANIFEST, dict(sorted(manifest.items())))


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a folder's lock: two trainings that end at the same time must not lose each other's entries."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a disk without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def remove(path: Path) -> None:
    """Take a file out of a weights folder and out of its manifest, where it is there."""
    path = Path(path)
    manifest = read_manifest(path.parent) if (path.parent / MANIFEST).is_file() else {}
    if manifest.pop(path.name, None) is not None:
        write_json(path.parent / MANIFEST, manifest)
    path.unlink(missing_ok=True)


def register_trained(path: Path, stage: str, preset: Preset, data: Path | str, part: str = "") -> None:
    """Enter a trained stage.

    data: the folder that it was trained on, whose name is kept, and whether its images are synthetic; or a name alone.
    part: which of its images were used, in words that fit behind the name.
    """
    config = getattr(preset, stage)
    drawn = {"images": SYNTHETIC} if isinstance(data, Path) and is_synthetic(data) else {}
    register(
        path,
        stage=stage,
        architecture=config.backbone or config.architecture,
        source=f"{TRAINED_ON}{f'{data_name(data)} {part}'.strip()}",
        licence="GPL-3.0",
        preset=preset.name,
        **drawn,
    )


def data_name(data: Path | str) -> str:
    """The name of a data folder, or the name itself."""
    return data.resolve().name if isinstance(data, Path) else data


def is_synthetic(competition: Path) -> bool:
    """Whether `siimcovid synthetic` drew a competition folder: it leaves its parameters beside the ground truth."""
    competition = Path(competition).resolve()
    return (competition.with_name(f"{competition.name}.truth") / "synthetic.json").is_file()


def trained_on(entry: dict[str, str]) -> str:
    """What a manifest entry says of the images that its weights were trained on, "unknown images" without a word."""
    source = entry.get("source", "")
    name = source.removeprefix(TRAINED_ON) if source.startswith(TRAINED_ON) else "unknown images"
    return f"{name} ({SYNTHETIC} images)" if entry.get("images") == SYNTHETIC else name


def read_manifest(folder: Path) -> dict[str, dict[str, str]]:
    """The manifest of a weights folder. Raises InputError where it is missing or damaged, or `folder` is a file."""
    path = Path(folder) / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{folder} has no {MANIFEST}; make it with `siimcovid weights import`") from None
    except NotADirectoryError:
        raise InputError(f"{folder} is a file; name the folder that holds {MANIFEST} and the weights") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); name a weights folder that can be") from None
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}); make it again with `siimcovid weights import`") from None
    entries = manifest.values() if isinstance(manifest, dict) else [None]
    if not all(isinstance(entry, dict) and isinstance(entry.get("sha256"), str) for entry in entries):
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
    try:
        checksum = sha256(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); copy it again") from None
    if checksum != manifest[name]["sha256"]:
        raise InputError(f"{path} is damaged: its checksum is not the one in {MANIFEST}; copy it again")
    return path
