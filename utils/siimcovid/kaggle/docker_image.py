"""A Python environment like the one of Kaggle's image, for a rehearsal.

Two kinds. `install_image` makes a virtual environment with the versions of a dated image: `images/<year>-<month>.txt`
lists what the kernel uses of it. `link_environment` takes the running environment without the project and without what
Kaggle lacks: site-packages of links, which needs no download.
"""

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
import venv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from siimcovid.core.errors import InputError
from siimcovid.core.files import write_text
from siimcovid.kaggle.wheels_dataset import LACKING, UNUSED, canonical

#: Not found in the environment that `link_environment` makes.
HIDDEN = ("siimcovid", *LACKING, *UNUSED)

#: The dated lists.
IMAGES = Path(__file__).parent / "docker_images"


@dataclass(frozen=True)
class KaggleImage:
    """One of Kaggle's images: `name` is year and month, `python` "3.12", `requirements` the list of its packages."""

    name: str
    python: str
    requirements: Path


def images() -> list[KaggleImage]:
    """The images that can be imitated, the oldest first."""
    found = []
    for path in sorted(IMAGES.glob("*.txt")):
        (python,) = re.findall(r"^# python (3\.\d+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
        found.append(KaggleImage(path.stem, python, path))
    return found


def find_image(name: str) -> KaggleImage:
    """The newest image whose name begins so ("2026", "2025-09"). Raises InputError where there is none."""
    found = [image for image in images() if image.name.startswith(name)]
    if not found:
        raise InputError(f"no image {name!r}; there are {', '.join(image.name for image in images())}")
    return found[-1]


def install_image(image: KaggleImage, folder: Path, log: Callable[[str], None] = print) -> Path:
    """Make the image's virtual environment in `folder`/<name>, if it is not there yet; returns its Python.

    Takes uv where it is installed, else pip. PyTorch comes with its CUDA libraries, as on Kaggle: about 8 GB on disk.

    Raises:
        InputError: no Python of the image's version is installed, or a package cannot be installed.
    """
    place = folder.absolute() / image.name
    python, done = place / "bin" / "python", place / "installed.txt"
    wanted = image.requirements.read_text(encoding="utf-8")
    if python.is_file() and done.is_file() and done.read_text(encoding="utf-8") == wanted:
        return python
    base = find_python(image.python)
    begin = time.monotonic()
    log(f"Installing the image of {image.name} into {place} (about 8 GB)")
    shutil.rmtree(place, ignore_errors=True)
    uv = [shutil.which("uv")] if shutil.which("uv") else []
    if not uv and importlib.util.find_spec("uv"):
        uv = [sys.executable, "-m", "uv"]
    make = [*uv, "venv", "--quiet", f"--python={base}"] if uv else [str(base), "-m", "venv"]
    install = [*uv, "pip", "install", "--quiet", f"--python={python}"] if uv else [str(python), "-m", "pip", "install"]
    for command in ([*make, str(place)], [*install, "--requirement", str(image.requirements)]):
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        if ended.returncode:
            raise InputError(f"`{' '.join(command)}` failed: {ended.stderr.strip()[-1000:]}")
    left = still_there(python, LACKING)
    if left:
        raise InputError(f"{image.requirements} brings {', '.join(left)}, which Kaggle's image is said to lack")
    write_text(done, wanted)
    log(f"Installed in {time.monotonic() - begin:.0f} s")
    return python


def here() -> str:
    """The version of the running Python, as "3.12"."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def find_python(version: str) -> Path:
    """An installed Python of that version ("3.12"): this one, one of PATH, or one of pyenv's."""
    if version == here():
        return Path(sys.base_prefix) / "bin" / f"python{version}"
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    on_path = shutil.which(f"python{version}")
    code = "import sys; print('.'.join(map(str, sys.version_info[:2])))"
    for path in (*([on_path] if on_path else []), *sorted(pyenv.glob(f"versions/{version}.*/bin/python"))):
        answer = subprocess.run([str(path), "-c", code], capture_output=True, text=True, check=False)
        if answer.stdout.strip() == version:  # pyenv's shims are there for versions that are switched off, too
            return Path(path)
    raise InputError(f"no Python {version} is installed, which the image has; install it (pyenv install {version})")


def link_environment(folder: Path, hidden: Sequence[str] = HIDDEN) -> Path:
    """Make an environment of links to the running one's packages but for `hidden`; returns its Python.

    Raises InputError if one of `hidden` can still be found.
    """
    venv.create(folder, symlinks=True, with_pip=False)
    source = Path(sysconfig.get_paths()["purelib"])
    target = folder / source.relative_to(sys.prefix)
    concealed = hidden_entries(source, hidden)
    for entry in sorted(source.iterdir()):
        if entry.name not in concealed and entry.suffix != ".pth":
            (target / entry.name).symlink_to(entry)
    python = folder / "bin" / "python"
    left = still_there(python, hidden)
    if left:
        raise InputError(f"{', '.join(left)} would be found in the stand-in for Kaggle's Python; use a clean .venv")
    return python


def hidden_entries(source: Path, hidden: Sequence[str]) -> set[str]:
    """The names in site-packages that belong to these distributions alone."""
    wanted = {canonical(name) for name in hidden}
    theirs, others = set(), set()
    for distribution in importlib.metadata.distributions(path=[str(source)]):
        names = {file.parts[0] for file in distribution.files or () if file.parts[0] not in ("..", "__pycache__")}
        (theirs if canonical(distribution.metadata["Name"]) in wanted else others).update(names)
    return theirs - others


def still_there(python: Path, hidden: Sequence[str]) -> list[str]:
    """Those of `hidden` that this Python has all the same."""
    code = (
        "import importlib.metadata as m, importlib.util as u, sys\n"
        "found = {d.metadata['Name'].lower().replace('_', '-').replace('.', '-') for d in m.distributions()}\n"
        "print(*[n for n in sys.argv[1:] if n in found or u.find_spec(n.replace('-', '_'))])"
    )
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    command = [str(python), "-c", code, *hidden]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=clean, cwd="/").stdout.split()
