"""What a submission on Kaggle takes besides the code: the client, an account and the bundles that are uploaded."""

import importlib.metadata as metadata
import json
from pathlib import Path

from siimcovid.apps.doctor.check_result import MISSING, NOTE, OK, Finding, Surroundings
from siimcovid.kaggle import CODE_ARCHIVE, KERNEL, OWNER_PLACEHOLDER, SLUGS, WHEEL_LIST

BUILD = "make kaggle OWNER=your-kaggle-name"

#: Bundle -> the file by which it is known.
MARKERS = {"code": CODE_ARCHIVE, "weights": "manifest.json", "wheels": WHEEL_LIST}


def client(around: Surroundings) -> list[Finding]:
    """Kaggle's own client, which uploads."""
    try:
        return [Finding(OK, f"kaggle client {metadata.version('kaggle')}")]
    except metadata.PackageNotFoundError:
        return [Finding(MISSING, "the kaggle client is not installed", "pip install kaggle")]


def credentials(around: Surroundings) -> list[Finding]:
    """Whether there are credentials; they are neither read nor shown."""
    variables = around.environment
    if variables.get("KAGGLE_API_TOKEN") or (variables.get("KAGGLE_USERNAME") and variables.get("KAGGLE_KEY")):
        return [Finding(OK, "Kaggle credentials: in the environment")]
    folders = [around.home / ".kaggle", Path(variables.get("XDG_CONFIG_HOME") or around.home / ".config") / "kaggle"]
    if explicit := variables.get("KAGGLE_CONFIG_DIR"):
        folders = [Path(explicit)]
    for path in (folder / name for folder in folders for name in ("kaggle.json", "access_token")):
        if path.is_file():
            if path.stat().st_mode & 0o077:
                return [Finding(NOTE, f"Kaggle credentials: {path}, which others can read", f"chmod 600 {path}")]
            return [Finding(OK, f"Kaggle credentials: {path}")]
    way_out = f"kaggle.com > Settings > API > Create token, and put the file into {folders[0]}"
    return [Finding(MISSING, "no Kaggle credentials", way_out)]


def bundles(around: Surroundings) -> list[Finding]:
    """The three datasets and the kernel's folder in datasets/."""
    shelf = around.root / "datasets"
    found = [_bundle(shelf / name, marker, around) for name, marker in MARKERS.items()]
    return [*found, _kernel(shelf / KERNEL)]


def _bundle(folder: Path, marker: str, around: Surroundings) -> Finding:
    name = f"bundle {folder.name} ({SLUGS[folder.name]})"
    absent = [file for file in (marker, "dataset-metadata.json") if not (folder / file).is_file()]
    if absent:
        return Finding(MISSING, f"{name}: no {' and '.join(absent)} in {folder}", BUILD)
    files = [path for path in folder.iterdir() if path.is_file()]
    size = sum(path.stat().st_size for path in files) / (1 << 20)
    if folder.name == "code":
        package = around.root / "utils" / "siimcovid"
        newest = max((path.stat().st_mtime for path in package.rglob("*.py")), default=0.0)
        if newest > (folder / marker).stat().st_mtime:
            return Finding(NOTE, f"{name}: older than the package in {package}", BUILD)
    if folder.name == "wheels" and not any(path.suffix == ".whl" for path in files):
        return Finding(MISSING, f"{name}: no wheels in {folder}", BUILD)
    return Finding(OK, f"{name}: {len(files)} files, {size:.1f} MB")


def _kernel(folder: Path) -> Finding:
    path = folder / "kernel-metadata.json"
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        owner = str(facts["id"]).partition("/")[0]
        code = folder / str(facts["code_file"])
    except (OSError, ValueError, KeyError, TypeError):
        return Finding(MISSING, f"kernel: no {path}, or a damaged one", BUILD)
    if owner in ("", OWNER_PLACEHOLDER):
        return Finding(MISSING, f"kernel: {path} names no account", BUILD)
    if facts.get("enable_internet") is not False:
        return Finding(MISSING, f"kernel: {path} does not switch the internet off, so it could not be submitted", BUILD)
    if not code.is_file():
        return Finding(MISSING, f"kernel: {code} is missing", BUILD)
    return Finding(OK, f"kernel: {facts['id']}, internet off")
