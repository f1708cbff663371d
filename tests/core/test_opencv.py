"""A machine without X libraries, where OpenCV's build with windows cannot be loaded."""

import importlib.metadata as metadata
import os
import subprocess
import sys
from pathlib import Path

import cv2
import pytest

from siimcovid.core.opencv import explanation

PACKAGE = Path(__file__).parents[2] / "utils" / "siimcovid"


def folders_that_load_opencv() -> list[str]:
    """The dotted names of the package's folders whose modules import cv2."""
    files = [path for path in PACKAGE.rglob("*.py") if "\nimport cv2" in path.read_text(encoding="utf-8")]
    assert len(files) > 8
    return sorted({".".join(("siimcovid", *path.parent.relative_to(PACKAGE).parts)) for path in files})


@pytest.fixture
def broken(tmp_path) -> dict[str, str]:
    """The environment of a process in which `import cv2` fails as the build with windows does."""
    (tmp_path / "cv2.py").write_text("raise ImportError('libGL.so.1: cannot open shared object file')\n")
    paths = [str(tmp_path), str(PACKAGE.parent), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


@pytest.mark.parametrize("folder", folders_that_load_opencv())
def test_the_folder_says_what_mends_it(folder, broken):
    done = subprocess.run([sys.executable, "-c", f"import {folder}"], env=broken, capture_output=True, text=True)
    last = done.stderr.splitlines()[-1]
    assert last.startswith("siimcovid.core.errors.InstallationError: OpenCV cannot be loaded here (libGL.so.1")
    assert f"{sys.executable} -m pip install opencv-python-headless" in last


def test_the_command_prints_one_line(broken, tmp_path):
    command = [sys.executable, "-m", "siimcovid", "prepare", str(tmp_path), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, env=broken, capture_output=True, text=True)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("siimcovid: OpenCV cannot be loaded here")


def test_a_missing_module():
    text = explanation(ModuleNotFoundError("No module named 'cv2'", name="cv2"), "python3")
    assert text == "OpenCV is not installed: python3 -m pip install opencv-python-headless"


@pytest.mark.skipif(not (Path(sys.prefix) / "installed").exists(), reason="this environment was not made by make")
def test_the_environment_has_the_build_without_windows_alone():
    names = {distribution.metadata["Name"].lower() for distribution in metadata.distributions()}
    assert {name for name in names if name.startswith("opencv")} == {"opencv-python-headless"}
    gui = [line.split(":")[1].strip() for line in cv2.getBuildInformation().splitlines() if line.startswith("  GUI:")]
    assert gui in ([], ["NONE"])
