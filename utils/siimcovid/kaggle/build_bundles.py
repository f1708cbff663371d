"""Builds the three datasets and the kernels' folders, each beside its place and then moved in whole.

In:  the repository (package, notebook, kernel-metadata.json, requirements.lock), a weights folder, the owner's name.
Out: `<out>/code`, `weights`, `wheels` and `kernel` (or `kernel-<ending>`), flat folders that Kaggle's client can upload
as they are.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import siimcovid
from siimcovid.core.errors import InputError
from siimcovid.core.files import make_folder, write_json
from siimcovid.kaggle import CODE_ARCHIVE, KERNEL, SLUGS, weights_dataset, wheels_dataset
from siimcovid.kaggle.code_dataset import write_code
from siimcovid.kaggle.kaggle_metadata import DATASET_FILE, KERNEL_FILE, dataset_metadata, kernel_metadata
from siimcovid.kaggle.kernel_folder import Kernel, write_kernel

PACKAGE = Path(siimcovid.__file__).resolve().parent


@dataclass(frozen=True)
class Repository:
    """The files of the repository that go into the bundles."""

    root: Path = PACKAGE.parents[1]
    package: Path = PACKAGE

    @property
    def notebook(self) -> Path:
        return self.root / "notebooks" / "siim_covid19.ipynb"

    @property
    def kernel_template(self) -> Path:
        return self.root / KERNEL_FILE

    @property
    def lock(self) -> Path:
        return self.root / "requirements.lock"

    @property
    def licence(self) -> Path:
        return self.root / "LICENSE"

    def check(self) -> None:
        """Raise InputError where the package does not lie in its repository."""
        for path in (self.notebook, self.kernel_template, self.lock, self.licence):
            if not path.is_file():
                raise InputError(f"{path} is missing: the bundles are built in a clone of the repository")


def build(
    out: Path,
    owner: str,
    weights: Path,
    bundles: Sequence[str] = (*SLUGS, KERNEL),
    repository: Repository | None = None,
    pythons: Sequence[str] = wheels_dataset.PYTHONS,
    kernels: Sequence[Kernel] = (Kernel(),),
    parameters: Mapping[str, Any] | None = None,
) -> list[str]:
    """Build these bundles into `out`; returns a line with the size of each, and what is worth knowing.

    What can be wrong is checked before anything is written or downloaded.

    Args:
        out: the folder of the bundles' folders.
        owner: the Kaggle name.
        weights: a weights folder.
        bundles: which of the three datasets, and KERNEL for `kernels`.
        repository: by default the one in which this package lies.
        pythons: the versions for which wheels are gathered.
        kernels: which kernels.
        parameters: of all kernels' notebooks, beside those that fit the weights.
    """
    repository = repository or Repository()
    repository.check()
    pins = wheels_dataset.read_pins(repository.lock)
    settings: dict[str, Any] = {}
    if {"weights", KERNEL} & set(bundles):
        weights_dataset.verify(weights)
        settings = {**weights_dataset.kernel_parameters(weights), **(parameters or {})}
    for kernel in kernels if KERNEL in bundles else ():
        kernel_metadata(repository.kernel_template, owner, repository.notebook.name, kernel.ending, kernel.earlier)
    lines = []
    for bundle in (name for name in bundles if name in SLUGS):
        lines += _build_dataset(bundle, out / bundle, owner, weights, repository, pins, pythons)
    for kernel in kernels if KERNEL in bundles else ():
        with assembled(out / kernel.folder) as folder:
            write_kernel(repository.notebook, repository.kernel_template, owner, settings, folder, kernel)
        lines.append(size_line(out / kernel.folder))
    return lines


def _build_dataset(
    bundle: str,
    target: Path,
    owner: str,
    weights: Path,
    repository: Repository,
    pins: Mapping[str, str],
    pythons: Sequence[str],
) -> list[str]:
    """Build one of the three datasets; returns the lines to print. Wheels that are there already are kept."""
    notes: list[str] = []
    if bundle == "wheels" and wheels_dataset.is_current(target, pins, pythons):
        write_json(target / DATASET_FILE, dataset_metadata(bundle, owner))
        return [size_line(target)]
    with assembled(target) as folder:
        if bundle == "code":
            write_code(repository.package, folder / CODE_ARCHIVE, repository.licence)
        elif bundle == "weights":
            weights_dataset.write_weights(weights, folder)
        else:
            notes = wheels_dataset.gather(pins, folder, pythons)
        write_json(folder / DATASET_FILE, dataset_metadata(bundle, owner))
    return [size_line(target), *notes]


@contextmanager
def assembled(folder: Path) -> Iterator[Path]:
    """Yield an empty folder beside `folder`; on success it takes its place, on error `folder` stays as it was."""
    make_folder(folder.parent)
    new = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    old = new.with_name(f"{new.name}.old")
    try:
        yield new
        inner = [path.name for path in new.iterdir() if path.is_dir()]
        if inner:
            raise InputError(f"{folder} would hold the subfolders {inner}, which Kaggle's client skips")
        new.chmod(0o755)
        if folder.exists():
            os.replace(folder, old)
        try:
            os.replace(new, folder)
        except OSError:
            if old.exists():
                os.replace(old, folder)
            raise
    finally:
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def size_line(folder: Path) -> str:
    """The folder's name, its number of files and their size."""
    sizes = [path.stat().st_size for path in folder.iterdir()]
    return f"{folder}: {len(sizes)} files, {sum(sizes) / 1e6:.1f} MB"


def missing_bundles(out: Path, kernel: str = KERNEL) -> list[str]:
    """The bundles that are not built yet, of the three datasets and the kernel with this folder."""
    absent = [name for name in SLUGS if not (out / name / DATASET_FILE).is_file()]
    return absent if (out / kernel / KERNEL_FILE).is_file() else [*absent, kernel]
