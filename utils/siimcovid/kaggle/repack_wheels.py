"""Wheels made of what is installed, so that a rehearsal has wheels to install without a network.

In: distributions of this environment at the pinned versions. Out: wheels with the same files, for this Python alone.
"""

import importlib.metadata
import zipfile
from collections.abc import Mapping
from pathlib import Path

from siimcovid.core.errors import InputError
from siimcovid.core.files import write_text
from siimcovid.kaggle import WHEEL_LIST
from siimcovid.kaggle.wheels_dataset import wheel_list

#: What an installer adds to a distribution's own files.
WRITTEN_BY_INSTALLER = {"INSTALLER", "REQUESTED", "direct_url.json", "RECORD"}


def repack(pins: Mapping[str, str], folder: Path) -> None:
    """Write a wheel of each pinned distribution, and their list, into `folder`.

    Raises InputError where one is not installed, or in another version.
    """
    for name, version in pins.items():
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            raise InputError(f"{name} is not installed") from None
        if distribution.version != version:
            raise InputError(f"{name} is installed as {distribution.version}, and {version} is pinned")
        _write_wheel(distribution, folder)
    write_text(folder / WHEEL_LIST, wheel_list(pins, folder))


def _write_wheel(distribution: importlib.metadata.Distribution, folder: Path) -> None:
    header = (distribution.read_text("WHEEL") or "").splitlines()
    tags = [line.removeprefix("Tag: ") for line in header if line.startswith("Tag: ")]
    files = [
        file
        for file in distribution.files or ()
        # scripts lie outside site-packages, and pip makes them anew
        if file.parts[0] != ".." and "__pycache__" not in file.parts and file.name not in WRITTEN_BY_INSTALLER
    ]
    information = next((file.parts[0] for file in files if file.parts[0].endswith(".dist-info")), None)
    if not tags or information is None:
        raise InputError(f"{distribution.metadata['Name']} was not installed from a wheel")
    with zipfile.ZipFile(folder / f"{information.removesuffix('.dist-info')}-{tags[-1]}.whl", "w") as stream:
        for file in files:
            stream.write(file.locate(), str(file))
        stream.writestr(f"{information}/RECORD", "".join(f"{file},,\n" for file in [*files, f"{information}/RECORD"]))
