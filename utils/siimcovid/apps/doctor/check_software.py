"""Python, the packages with their versions, the codecs, and the programs around them."""

import importlib.metadata as metadata
import shutil
import sys

from packaging.requirements import Requirement

from siimcovid.apps.doctor.check_result import MISSING, NOTE, OK, Finding, Surroundings
from siimcovid.core.errors import MEND_OPENCV

#: First and last Python that the tests were run on.
PYTHONS = ((3, 10), (3, 13))

#: Packages whose version is worth seeing.
SHOWN = ("torch", "torchvision", "numpy", "pandas", "pydicom", "yolov5", "albumentations")

#: Distribution -> the DICOM compressions that it decodes.
CODECS = {
    "dicomsdl": "JPEG Lossless, fast",
    "python-gdcm": "JPEG, JPEG-LS, JPEG 2000, RLE",
    "pylibjpeg": "the interface of the next two",
    "pylibjpeg-libjpeg": "JPEG, JPEG Lossless, JPEG-LS",
    "pylibjpeg-openjpeg": "JPEG 2000",
}


def python(around: Surroundings) -> list[Finding]:
    """The interpreter's version: older than PYTHONS is missing, newer is a note."""
    (low, high), here = PYTHONS, sys.version_info[:2]
    said = f"Python {sys.version.split()[0]}"
    if low <= here <= high:
        return [Finding(OK, said)]
    if here > high:
        return [
            Finding(
                NOTE, f"{said}: newer than {high[0]}.{high[1]}, the last that was tested; some codecs may be absent"
            )
        ]
    way_out = f"make clean, then make PYTHON=python{high[0]}.{high[1]} .venv/installed, after installing that Python"
    return [Finding(MISSING, f"{said}: it must be {low[0]}.{low[1]} to {high[0]}.{high[1]}", way_out)]


def packages(around: Surroundings) -> list[Finding]:
    """What the package itself needs."""
    return _packages(())


def all_packages(around: Surroundings) -> list[Finding]:
    """What the package, the demo, structured reports, the web page and the tests need."""
    return _packages(("demo", "dicom-sr", "test", "web"))


def _packages(extras: tuple[str, ...]) -> list[Finding]:
    way_out = "make .venv/installed, or scripts/install.sh FOLDER demo,web for an environment elsewhere"
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
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    pinned = [r for line in lines if (r := Requirement(line.partition(" #")[0])).marker is None or r.marker.evaluate()]
    other = [
        f"{r.name} {here} (locked {str(r.specifier).removeprefix('==')})"
        for r in pinned
        if (here := _version(r.name)) and not r.specifier.contains(here, prereleases=True)
    ]
    if other:
        said = f"{len(other)} packages differ from requirements.lock: {', '.join(other[:3])}" + ", …" * (len(other) > 3)
        return [Finding(NOTE, said, "rm .venv/installed && make .venv/installed, if a test fails that should not")]
    return [Finding(OK, f"{len(pinned)} packages as in requirements.lock")]


def _version(name: str) -> str:
    """The installed version without its build (2.14.1+cpu is 2.14.1); empty where the package is missing."""
    try:
        return metadata.version(name).split("+")[0]
    except metadata.PackageNotFoundError:
        return ""


def codecs(around: Surroundings) -> list[Finding]:
    """The DICOM decoders; one without a wheel for this Python is a note, since the others read what it reads."""
    absent = [name for name in CODECS if not _installed(name)]
    here = ".".join(map(str, sys.version_info[:2]))
    found = [
        Finding(NOTE, f"codec {name} ({CODECS[name]}): optional, it has no wheel for Python {here}")
        if name in _not_for_this_python()
        else Finding(MISSING, f"codec {name} ({CODECS[name]})", f"pip install {name}")
        for name in absent
    ]
    present = [f"{name} {metadata.version(name)}" for name in CODECS if name not in absent]
    if present and not any(finding.state == MISSING for finding in found):
        found.insert(0, Finding(OK, f"DICOM codecs: {', '.join(present)}"))
    return found


def _not_for_this_python() -> set[str]:
    """Names that the package's metadata asks for on other versions of Python alone."""
    try:
        needed = [Requirement(line) for line in metadata.requires("siimcovid") or ()]
    except metadata.PackageNotFoundError:
        return set()
    return {r.name for r in needed if r.marker is not None and not r.marker.evaluate({"extra": ""})}


def opencv(around: Surroundings) -> list[Finding]:
    """OpenCV without windows, and not beside the build with windows: the two share their files."""
    names = [name for name in ("opencv-python", "opencv-python-headless") if _installed(name)]
    way_out = MEND_OPENCV.format(sys.executable)
    if "opencv-python" in names:
        said = "OpenCV: its build with windows is installed, which needs X and OpenGL libraries at import"
        return [Finding(NOTE, said, way_out)]
    if not names:
        return [Finding(MISSING, "OpenCV is not installed", f"{sys.executable} -m pip install opencv-python-headless")]
    return [Finding(OK, f"OpenCV {metadata.version(names[0])}, the build without windows")]


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
