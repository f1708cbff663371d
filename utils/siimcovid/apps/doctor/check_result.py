"""What a check returns, and the places that it searches."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

OK, MISSING, NOTE = "ok", "missing", "note"

#: The repository, where the package lies in one (in site-packages there is none, and its folders are not found).
REPOSITORY = Path(__file__).resolve().parents[4]


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's report."""

    state: str  # OK, MISSING or NOTE
    said: str
    way_out: str = ""


@dataclass(frozen=True)
class Surroundings:
    """The folders and variables that the checks search; tests pass their own."""

    root: Path = REPOSITORY
    home: Path = field(default_factory=Path.home)
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)
    kaggle_input: Path = Path("/kaggle/input")
    data: Path | None = None  # a competition folder that was named
    weights: Path | None = None  # a weights folder that was named
