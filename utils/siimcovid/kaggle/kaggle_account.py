"""The owner of the bundles on Kaggle: asked for once, then remembered in a file that git ignores."""

import json
import os
import sys
from pathlib import Path

from siimcovid.core.errors import InputError
from siimcovid.core.files import write_text
from siimcovid.kaggle import OWNER_PLACEHOLDER
from siimcovid.kaggle.kaggle_metadata import SLUG

#: Lies beside the built bundles.
REMEMBERED = ".owner"


def find_owner(folder: Path, explicit: str | None = None) -> str:
    """The owner's Kaggle name, in lower case as Kaggle's addresses have it.

    The first of: `explicit`, KAGGLE_USERNAME, the name remembered in `folder`, the user name in Kaggle's kaggle.json,
    the answer to a question (where somebody is there to answer). It is then remembered.

    Raises:
        InputError: nobody can be asked, or the name cannot be a Kaggle name.
    """
    path = folder / REMEMBERED
    remembered = path.read_text(encoding="utf-8").strip() if path.is_file() else ""
    owner = explicit or os.environ.get("KAGGLE_USERNAME") or remembered or _from_kaggle_json() or _ask()
    owner = owner.strip().lower()
    if not SLUG.fullmatch(owner) or owner == OWNER_PLACEHOLDER:
        raise InputError(f"{owner!r} is no Kaggle name: give the one in your profile's address, as OWNER=name")
    if owner != remembered:
        write_text(path, owner + "\n")
    return owner


def configuration_folders() -> list[Path]:
    """Where Kaggle's client keeps kaggle.json and its tokens, in its own order."""
    if explicit := os.environ.get("KAGGLE_CONFIG_DIR"):
        return [Path(explicit)]
    settings = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return [Path.home() / ".kaggle", Path(settings) / "kaggle"]


def _from_kaggle_json() -> str:
    for folder in configuration_folders():
        try:
            return str(json.loads((folder / "kaggle.json").read_text(encoding="utf-8"))["username"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return ""


def _ask() -> str:
    if not sys.stdin or not sys.stdin.isatty():
        raise InputError("whose Kaggle account? Say OWNER=your-kaggle-name (once; it is remembered)")
    return input("Your Kaggle name, as in your profile's address: ")
