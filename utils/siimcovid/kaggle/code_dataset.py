"""The code dataset: the package as one archive, the same bytes for the same files.

Kaggle's client skips subfolders, so the package travels as a zip, which Kaggle unpacks.
"""

import zipfile
from pathlib import Path, PurePosixPath

from siimcovid.core.errors import InputError
from siimcovid.kaggle import CODE_MARKER

SKIPPED = {"__pycache__", ".ipynb_checkpoints"}
EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest date that a zip can hold


def write_code(package: Path, archive: Path, licence: Path | None = None) -> int:
    """Write the package folder as `siimcovid/…` into a zip, with the licence beside it; returns the number of files."""
    files = {f"{package.name}/{path.relative_to(package).as_posix()}": path for path in _files(package)}
    if CODE_MARKER not in files:
        raise InputError(f"{package.parent} holds no siimcovid package: it has no {CODE_MARKER}")
    if licence is not None:
        files[licence.name] = licence
    # folders are entries too: imported from the archive itself, one without an __init__.py is found by its entry alone
    folders = {f"{parent}/" for name in files for parent in PurePosixPath(name).parents if parent.name}
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as stream:
        for name in sorted({*files, *folders}):
            entry = zipfile.ZipInfo(name, EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = (0o40755 << 16 | 0x10) if name in folders else 0o100644 << 16
            stream.writestr(entry, b"" if name in folders else files[name].read_bytes())
    return len(files)


def _files(package: Path) -> list[Path]:
    return [
        path
        for path in package.rglob("*")
        if path.is_file() and not SKIPPED & set(path.parts) and path.suffix not in (".pyc", ".pyo")
    ]
