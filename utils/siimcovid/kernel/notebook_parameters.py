"""Where the parameters of the notebook are checked, all of them before anything runs.

In: the values of the notebook's parameters cell, of whatever type: papermill passes numbers where a text reads like
one, and text where JSON was meant. Out: `Parameters`. A wrong type or value is one sentence that names the parameter,
an InputError that passes through `Recovery.recover`: recorded, and the default is taken; raised with STRICT.

    COMPETITION_DIR, WEIGHTS_DIR  a folder's path; "" or None: it is looked for under /kaggle/input
    OUTPUT_DIR                    a folder that can be made and written; default: the notebook's own
    PRESET                        a name of presets.PRESETS; default "full"
    MODE                          "infer" or "finetune"; default "infer"
    HOURS                         a finite number above 0; default 9
    SESSIONS                      a whole number of 1 or more; default 1
    JOBS                          a whole number of 0 or more; default 0
    SEED                          None, or a whole number of 0 to 2**32 - 1
    OVERRIDES                     {dotted setting: value}, or JSON text of it
    STRICT                        true or false, also as 0, 1, "yes", "no", "on", "off", "true", "false"
"""

import json
import math
import numbers
import os
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from siimcovid.core.configuration import Preset
from siimcovid.core.errors import InputError
from siimcovid.core.presets import FULL, PRESETS, load_preset
from siimcovid.kernel.recovery import Recovery

MODES = ("infer", "finetune")
HOURS = 9.0

TRUE, FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


@dataclass(frozen=True)
class Parameters:
    """Checked parameters. `preset` has the seed and OVERRIDES applied, `overrides` are both of them."""

    output_dir: Path = field(default_factory=Path.cwd)
    competition_dir: Path | None = None  # None: to be looked for
    weights_dir: Path | None = None
    preset: Preset = FULL
    mode: str = "infer"
    hours: float = HOURS
    sessions: int = 1  # runs of so many hours that the training may take
    overrides: Mapping[str, Any] = field(default_factory=dict)
    jobs: int = 0  # models that are trained at a time; 0: as many as are trained soonest


def check_parameters(given: Mapping[str, Any], recovery: Recovery) -> Parameters:
    """Check all parameters.

    given: by the names of the notebook in lower case; what is absent has its default. recovery: its `strict` is set by
    STRICT before the others are checked.
    """
    found: dict[str, Any] = {}

    def check(name: str, read: Callable[[Any], Any], fallback: str, default: Any) -> None:
        found[name] = default
        if name in given:
            with recovery.recover("parameters", fallback):
                found[name] = read(given[name])

    check("strict", read_strict, "STRICT False", False)
    recovery.strict = found.pop("strict")
    check("hours", read_hours, f"HOURS {HOURS:g}", HOURS)
    check("sessions", read_sessions, "SESSIONS 1", 1)
    check("jobs", read_jobs, "JOBS 0", 0)
    check("mode", lambda value: _one_of("MODE", value, MODES), f"MODE {MODES[0]!r}", MODES[0])
    check("preset", lambda value: _one_of("PRESET", value, tuple(PRESETS)), f"PRESET {FULL.name!r}", FULL.name)
    check("seed", read_seed, "the preset's seed", None)
    check("output_dir", read_output_dir, "the notebook's own folder", Path.cwd())
    searched = "one under /kaggle/input, if there is any"
    check("competition_dir", lambda value: read_folder("COMPETITION_DIR", value), searched, None)
    check("weights_dir", lambda value: read_folder("WEIGHTS_DIR", value), searched, None)
    seed = found.pop("seed")
    seeded = {} if seed is None else {"seed": seed}
    name = found.pop("preset")
    found |= {"preset": load_preset(name, seeded), "overrides": seeded}
    if "overrides" in given:
        with recovery.recover("parameters", "the preset without OVERRIDES"):
            overrides = {**seeded, **read_overrides(given["overrides"])}
            found |= {"preset": _overridden(name, overrides), "overrides": overrides}
    return Parameters(**found)


def read_strict(value: Any) -> bool:
    """STRICT as a truth value. Raises InputError for anything that is none."""
    text = str(value).strip().lower()
    if isinstance(value, bool | numbers.Integral | str) or type(value).__name__ in ("bool_", "bool"):
        if text in TRUE:
            return True
        if text in FALSE:
            return False
    raise InputError(f"STRICT must be true or false, not {_shown(value)}")


def read_hours(value: Any) -> float:
    """HOURS as a number. Raises InputError for anything that is no finite number above 0."""
    try:
        hours = math.nan if isinstance(value, bool) or not isinstance(value, numbers.Real | str) else float(value)
    except (TypeError, ValueError, OverflowError):
        hours = math.nan
    if not 0 < hours < math.inf:
        raise InputError(f"HOURS must be a number above 0, not {_shown(value)}")
    return hours


def read_sessions(value: Any) -> int:
    """SESSIONS as a whole number. Raises InputError for anything that is none of 1 or more."""
    sessions = _whole_number(value)
    if sessions is None or sessions < 1:
        raise InputError(f"SESSIONS must be a whole number of 1 or more, not {_shown(value)}")
    return sessions


def read_jobs(value: Any) -> int:
    """JOBS as a whole number. Raises InputError for anything that is none of 0 or more."""
    jobs = _whole_number(value)
    if jobs is None or jobs < 0:
        raise InputError(f"JOBS must be a whole number of 0 or more, not {_shown(value)}")
    return jobs


def _whole_number(value: Any) -> int | None:
    """A whole number, of whatever type or as text; None for anything else."""
    try:
        number = None if isinstance(value, bool) else int(value)
        return number if isinstance(value, str) or number == value else None
    except (TypeError, ValueError, OverflowError):
        return None


def read_seed(value: Any) -> int | None:
    """SEED as a whole number, or None for the preset's. Raises InputError for anything else."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    seed = _whole_number(value)
    if seed is None or not 0 <= seed < 2**32:
        raise InputError(f"SEED must be a whole number of 0 to 4294967295, or None, not {_shown(value)}")
    return seed


def read_folder(name: str, value: Any) -> Path | None:
    """The folder that a parameter names, or None for "" and None. Raises InputError where it names none."""
    path = _path(name, value)
    if path is None:
        return None
    try:
        if path.is_dir():
            return path
        what = "a file" if path.exists() else "missing"
    except (OSError, ValueError) as error:
        what = f"no folder that can be read ({_cause(error)})"
    raise InputError(f"{name} must be a folder, and {_shown(str(path))} is {what}")


def read_output_dir(value: Any) -> Path:
    """OUTPUT_DIR, made where it is missing; ""  and None for the current folder.

    Raises InputError where it cannot be made or written.
    """
    path = _path("OUTPUT_DIR", value) or Path.cwd()
    try:
        path.mkdir(parents=True, exist_ok=True)
        trial = path / f".{secrets.token_hex(4)}"
        trial.touch()
        trial.unlink()
    except (OSError, ValueError) as error:
        raise InputError(f"OUTPUT_DIR {_shown(str(path))} cannot be made or written: {_cause(error)}") from None
    return path


def _path(name: str, value: Any) -> Path | None:
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if not isinstance(value, str | os.PathLike):
        raise InputError(f"{name} must be the path of a folder as text, not {_shown(value)}")
    try:
        text = os.fsdecode(os.fspath(value))
        if "\0" in text:
            raise ValueError("it has a NUL character")
        return Path(text).expanduser().absolute()
    except (RuntimeError, ValueError, OSError) as error:  # RuntimeError: ~somebody who has no home
        raise InputError(f"{name} {_shown(value)} is no path: {error}") from None


def _cause(error: Exception) -> str:
    """The system's words for an error, without the path, which may be long."""
    return getattr(error, "strerror", None) or str(error)


def _one_of(name: str, value: Any, choices: tuple[str, ...]) -> str:
    if isinstance(value, str) and value.strip().lower() in choices:
        return value.strip().lower()
    raise InputError(f"{name} must be {' or '.join(map(repr, choices))}, not {_shown(value)}")


def read_overrides(value: Any) -> dict[str, Any]:
    """OVERRIDES as {dotted setting: value}; "" and None are none.

    Raises InputError where it is no such mapping, no JSON, or has a number that is not finite.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else {}
        except (ValueError, RecursionError):
            example = '{"rcnn.training.epochs": 3}'
            raise InputError(f"OVERRIDES must be JSON such as {example}, not {_shown(value)}") from None
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise InputError(f"OVERRIDES must be an object of settings, not {_shown(value)}")
    for key, item in value.items():
        for number in item if isinstance(item, list | tuple) else [item]:
            if isinstance(number, float) and not math.isfinite(number):
                raise InputError(f"OVERRIDES: setting {key!r} must be finite, not {number!r}")
    return dict(value)


def _overridden(name: str, overrides: Mapping[str, Any]) -> Preset:
    try:
        changed = load_preset(name, overrides)
    except InputError as error:
        raise InputError(f"OVERRIDES: {error}") from None
    except (TypeError, ValueError, OverflowError, AttributeError, ArithmeticError) as error:
        raise InputError(f"OVERRIDES {_shown(dict(overrides))} cannot be applied: {error}") from None
    if changed.members < 1:
        raise InputError(f"OVERRIDES: members must be 1 or more, not {changed.members}")
    return changed


def _shown(value: Any, length: int = 120) -> str:
    """A value as it is shown in a sentence: on one line, and not longer than that."""
    try:
        text = " ".join(repr(value).split())
    except Exception as error:  # a value of the notebook's own class may refuse
        text = f"a {type(value).__name__} ({type(error).__name__})"
    return text if len(text) <= length else f"{text[:length]} …"
