"""Runs in the kernel's first cell: install the attached wheels whose distribution this Python lacks.

Standard library only, because nothing else is sure to be there yet. Nothing of Kaggle's own is touched: the wheels go
into a folder of their own, which is put at the END of sys.path, so whatever the image has wins.
"""

import importlib
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from siimcovid.kaggle import WHEEL_LIST

KAGGLE_INPUT = Path("/kaggle/input")

#: Environment variables by which matplotlib, ultralytics and yolov5 are told where to write their settings.
SETTINGS = ("MPLCONFIGDIR", "YOLO_CONFIG_DIR", "YOLOV5_CONFIG_DIR")


def install_wheels(root: Path | str = KAGGLE_INPUT) -> list[str]:
    """Install what is missing from the wheels attached below `root`; returns the lines that say what was done.

    It never raises: a kernel without yolov5 can still submit what the other models predict.
    """
    _set_settings_folders()
    folder = find_wheels(root)
    if folder is None:
        return [f"No wheels are attached below {root}: only what is installed will be used."]
    listed = (folder / WHEEL_LIST).read_text(encoding="utf-8").splitlines()
    missing = [line for line in listed if line and not line.startswith("#") and _is_missing(line.split("==")[0])]
    if not missing:
        return [f"Nothing of {folder / WHEEL_LIST} is missing."]
    target = Path(tempfile.mkdtemp(prefix="siimcovid-wheels-"))
    done, faults = _install(missing, folder, target)
    if str(target) not in sys.path:
        sys.path.append(str(target))
    importlib.invalidate_caches()
    return [f"Installed from {folder}: {', '.join(done) or 'nothing'}", *faults]


def find_wheels(root: Path | str) -> Path | None:
    """The first folder below `root` that holds WHEEL_LIST; folders of images are not searched."""
    for folder, inner, files in os.walk(root, followlinks=True):
        inner[:] = sorted(set(inner) - {"train", "test", "images"})
        if WHEEL_LIST in files:
            return Path(folder)
    return None


def _set_settings_folders() -> None:
    """Point the libraries that would write their settings in HOME to a temporary folder."""
    absent = [name for name in SETTINGS if name not in os.environ]
    if absent:
        os.environ.update(dict.fromkeys(absent, tempfile.mkdtemp(prefix="siimcovid-settings-")))


def _is_missing(distribution: str) -> bool:
    if distribution == "setuptools":  # wanted for its pkg_resources alone
        return importlib.util.find_spec("pkg_resources") is None
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return True
    return False


def _install(lines: list[str], folder: Path, target: Path) -> tuple[list[str], list[str]]:
    """Install these lines of the list, at once or, should that fail, one by one: (what is installed, what failed)."""
    names = [line.split()[0] for line in lines]
    error = _pip(lines, folder, target)
    if error is None:
        return names, []
    if len(lines) == 1:
        return [], [f"{names[0]} could not be installed: {error}"]
    results = [_install([line], folder, target) for line in lines]
    return [name for done, _ in results for name in done], [fault for _, faults in results for fault in faults]


def _pip(lines: list[str], folder: Path, target: Path) -> str | None:
    """Run pip: its last line where it failed, else None. With the list's checksums it refuses damaged wheels."""
    listed = target.with_suffix(".txt")
    listed.write_text("\n".join(lines) + "\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "--isolated", "install", "--quiet", "--disable-pip-version-check"]
    command += [
        "--no-index",
        f"--find-links={folder}",
        "--no-deps",
        "--no-cache-dir",
        "--no-compile",
        "--require-hashes",
    ]
    command += [f"--target={target}", "--requirement", str(listed)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as failure:
        return str(failure)
    finally:
        listed.unlink(missing_ok=True)
    if done.returncode == 0:
        return None
    return (done.stderr.strip().splitlines() or [f"pip ended with {done.returncode}"])[-1]
