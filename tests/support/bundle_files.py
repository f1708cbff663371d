"""Small things to bundle: wheels of a few lines, weights of a few bytes, and all four bundles made of them."""

import hashlib
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path

from siimcovid.kaggle import SLUGS, wheels_dataset
from siimcovid.kaggle.build_bundles import Repository, build
from siimcovid.kaggle.kernel_folder import Kernel

#: As in requirements.lock, for wheels that `write_wheel` makes.
PINS = dict.fromkeys((*wheels_dataset.LACKING, wheels_dataset.PKG_RESOURCES), "1.0")


def write_wheel(folder: Path, name: str, version: str = "1.0", tag: str = "py3-none-any", module: str = "") -> Path:
    """A wheel with one module that knows its version."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = name.replace("-", "_")
    info = f"{stem}-{version}.dist-info"
    files = {
        f"{module or stem}.py": f"VERSION = {version!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: {tag}\n",
    }
    path = folder / f"{stem}-{version}-{tag}.whl"
    with zipfile.ZipFile(path, "w") as stream:
        for file, text in files.items():
            stream.writestr(file, text)
        stream.writestr(f"{info}/RECORD", "".join(f"{file},,\n" for file in [*files, f"{info}/RECORD"]))
    return path


def write_wheels(folder: Path, pins: dict[str, str] = PINS) -> Path:
    """A built folder of wheels."""
    for name, version in pins.items():
        write_wheel(folder, name, version)
    (folder / "siimcovid-wheels.txt").write_text(wheels_dataset.wheel_list(pins, folder))
    return folder


def write_weights(folder: Path, stages: tuple[str, ...] = ("rcnn", "yolo", "study"), preset: str = "demo") -> Path:
    """A weights folder whose files are no weights, but whose manifest vouches for them."""
    folder.mkdir(parents=True, exist_ok=True)
    manifest = {}
    for stage in stages:
        data = f"{stage} of {preset}".encode()
        (folder / f"{stage}.safetensors").write_bytes(data)
        (folder / f"{stage}.json").write_text("{}")
        manifest[f"{stage}.safetensors"] = {
            "stage": stage,
            "preset": preset,
            "sha256": hashlib.sha256(data).hexdigest(),
        }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def write_repository(root: Path) -> Repository:
    """The repository's files that are bundled, with a lock that pins what `write_wheel` makes."""
    real = Repository()
    (root / "notebooks").mkdir(parents=True)
    for path in (real.notebook, real.kernel_template, real.licence):
        (root / path.relative_to(real.root)).write_bytes(path.read_bytes())
    (root / "requirements.lock").write_text("".join(f"{name}=={version}\n" for name, version in PINS.items()))
    return Repository(root)


def write_bundles(top: Path, owner: str, kernels: Sequence[Kernel] = (Kernel(),)) -> Path:
    """All bundles, built from small things; the wheels are taken as they lie there, so nothing is downloaded."""
    write_wheels(top / "datasets" / "wheels")
    repository = write_repository(top / "repository")
    build(top / "datasets", owner, write_weights(top / "weights"), repository=repository, kernels=kernels)
    assert set(SLUGS) < {path.name for path in (top / "datasets").iterdir()}
    return top / "datasets"
