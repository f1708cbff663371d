"""A stand-in for Kaggle's Python: this environment without the project and without what Kaggle lacks.

It is a virtual environment whose site-packages are links to those of the running one, except for the distributions that
are hidden. Python and pip take it for what it is, an environment in which these were never installed.
"""

import importlib.metadata
import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Sequence
from pathlib import Path

from siimcovid.core.errors import InputError
from siimcovid.kaggle.wheels_dataset import LACKING, UNUSED, canonical

#: Hidden in the stand-in.
HIDDEN = ("siimcovid", *LACKING, *UNUSED)


def make_image(folder: Path, hidden: Sequence[str] = HIDDEN) -> Path:
    """Make the environment; returns the Python in it. Raises InputError if one of `hidden` can still be found."""
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
