"""Python, the packages with their versions, the codecs, and the programs around them."""

import importlib.metadata as metadata
import re
import shutil
import sys

from packaging.requirements import Requirement

from siimcovid.apps.doctor.check_result import MISSING, NOTE, OK, Finding, Surroundings

#: Versions of Python that the packages exist for.
PYTHONS = ((3, 10), (3, 12))

#: Packages whose version is worth seeing.
SHOWN = ("torch", "torchvision", "numpy", "pandas", "pydicom", "yolov5", "albumentations")

#: Distribution -> the DICOM compressions that it decodes.
CODECS = {
    "dicomsdl": "JPEG Lossless, fast",
    "python-gdcm": "JPEG, JPEG-LS, JPEG 2000, RLE",
    "pylibjpeg": "the frame of the next two",
    "pylibjpeg-libjpeg": "JPEG, JPEG Lossless, JPEG-LS",
    "pylibjpeg-openjpeg": "JPEG 2000",
}


def python(around: Surroundings) -> list[Finding]:
    """The interpreter's version."""
    (low, high), here = PYTHONS, sys.version_info[:2]
    said = f"Python {sys.version.split()[0]}"
    if low <= here <= high:
        return [Finding(OK, said)]
    way_out = "make PYTHON=python3.12 .venv/installed, after installing that Python"
    return [Finding(MISSING, f"{said}: it must be {low[0]}.{low[1]} to {high[0]}.{high[1]}", way_out)]


def packages(around: Surroundings) -> list[Finding]:
    """What the package itself needs."""
    return _packages(())


def all_packages(around: Surroundings) -> list[Finding]:
    """What the package, the demo, the web page and the tests need."""
    return _packages(("demo", "web", "test"))


def _packages(extras: tuple[str, ...]) -> list[Finding]:
    way_out = "make .venv/installed" if extras else "pip install siimcovid's dependencies: make .venv/installed"
    try:
        needed = [Requirement(line) for line in metadata.requires("siimcovid") or ()]
    except metadata.PackageNotFoundError:
        return [Finding(MISSING, "packages: siimcovid is not installed, so what it needs is not known", way_out)]
    chosen = [r for r in needed if _wanted(r, extras)]
    wrong = [text for requirement in chosen if (text := _fault(requirement))]
    if wrong:
        return [Finding(MISSING, f"package {text}", way_out) for text in wrong]
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in SHOWN)
    return [Finding(OK, f"{len(chosen)} packages: {versions}, …")]


def _wanted(requirement: Requirement, extras: tuple[str, ...]) -> bool:
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras))


def _fault(requirement: Requirement) -> str:
    """What is wrong with an installed package, empty for nothing."""
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return f"{requirement.name}: not installed"
    if requirement.specifier.contains(version, prereleases=True):
        return ""
    return f"{requirement.name} {version}: it must be {requirement.specifier}"


def lock(around: Surroundings) -> list[Finding]:
    """Whether the packages are those that the project was tested with."""
    path = around.root / "requirements.lock"
    if not path.is_file():
        return [Finding(NOTE, f"no requirements.lock in {around.root}", "work in a clone of the repository")]
    pinned = re.findall(r"^([A-Za-z0-9._-]+)==([^\s;#]+)", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    other = [
        f"{name} {here} (locked {version})" for name, version in pinned if (here := _version(name, version)) != version
    ]
    if other:
        said = f"{len(other)} packages differ from requirements.lock: {', '.join(other[:3])}" + ", …" * (len(other) > 3)
        return [Finding(NOTE, said, "pip install -r requirements.lock, if a test fails that should not")]
    return [Finding(OK, f"{len(pinned)} packages as in requirements.lock")]


def _version(name: str, default: str) -> str:
    try:
        return metadata.version(name).split("+")[0]  # 2.14.1+cpu is 2.14.1
    except metadata.PackageNotFoundError:
        return default


def codecs(around: Surroundings) -> list[Finding]:
    """The DICOM decoders."""
    absent = [name for name in CODECS if not _installed(name)]
    if absent:
        return [Finding(MISSING, f"codec {name} ({CODECS[name]})", f"pip install {name}") for name in absent]
    return [Finding(OK, "DICOM codecs: " + ", ".join(f"{name} {metadata.version(name)}" for name in CODECS))]


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def tools(around: Surroundings) -> list[Finding]:
    """The programs that the Makefile calls; Docker is needed for the image alone."""
    found = [
        Finding(OK, f"{name}: {path}")
        if (path := shutil.which(name))
        else Finding(MISSING, f"{name}: not found", f"apt-get install {name}")
        for name in ("git", "make")
    ]
    if not shutil.which("docker"):
        found.append(Finding(NOTE, "no Docker: the image cannot be built here; docker/ has its steps as scripts"))
    return found


def browser(around: Surroundings) -> list[Finding]:
    """What the browser tests drive; without it they are skipped."""
    absent = [name for name in ("chromium", "chromedriver") if not shutil.which(name)]
    if absent:
        said = f"{' and '.join(absent)} not found: the browser tests would be skipped"
        return [Finding(MISSING, said, "apt-get install chromium chromium-driver")]
    return [Finding(OK, f"chromium: {shutil.which('chromium')}")]
