"""The space of a search: which settings its trials try, from a YAML file; see search_spaces/study.yaml.

method: grid or random
trials: number of a random search
space:  dotted key of a setting -> list of values, or range {low, high, log}; or any name -> list of groups of settings
"""

import difflib
import functools
import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from siimcovid.core.configuration import Preset
from siimcovid.core.errors import InputError
from siimcovid.core.overrides import override

SPACES = Path(__file__).parent / "search_spaces"
METHODS = ("grid", "random")

#: Draws per trial wanted, before a random search gives up looking for one that it has not had.
DRAWS = 100

Settings = dict[str, Any]  # dotted key -> value, as --set takes them


@dataclass(frozen=True)
class Range:
    """A setting that may have any value from `low` to `high`."""

    key: str
    low: float
    high: float
    log: bool = False  # evenly on a logarithmic scale

    def draw(self, rng: np.random.Generator) -> float:
        """A value to three digits, so that the table and --set name it exactly."""
        if self.log:
            value = math.exp(rng.uniform(math.log(self.low), math.log(self.high)))
        else:
            value = rng.uniform(self.low, self.high)
        return min(max(float(f"{value:.3g}"), self.low), self.high)


@dataclass(frozen=True)
class Space:
    """A space file, read and checked: each of `parts` is a list of choices or a range."""

    method: str
    trials: int | None  # of a random search
    parts: tuple[list[Settings] | Range, ...]


def find_space(name: str) -> Path:
    """The space file at a path, or the one of that name that comes with the package."""
    shipped = SPACES / f"{name}.yaml"
    if Path(name).is_file() or not shipped.is_file():
        return Path(name)
    return shipped


def read_space(path: Path, stage: str, preset: Preset) -> Space:
    """Read a space file; every key and value is tried on the preset.

    Raises:
        InputError: the file is no space file, or a key or value does not exist, is of the wrong type, stands twice, is
            of another stage or is one that the search itself sets.
    """
    content = _content(path)
    method, trials = content.get("method"), content.get("trials")
    if method not in METHODS:
        raise InputError(f"{path}: method must be {' or '.join(METHODS)}, not {method!r}")
    if trials is not None and (type(trials) is not int or trials < 1):
        raise InputError(f"{path}: trials must be a whole number above 0, not {trials!r}")
    parts, seen = [], set()
    for name, values in content["space"].items():
        part = _part(str(name), values, path, stage, preset)
        if method == "grid" and isinstance(part, Range):
            raise InputError(f"{path}: {name} is a range, of which a grid cannot try every value; list some")
        keys = {part.key} if isinstance(part, Range) else {key for choice in part for key in choice}
        if keys & seen:
            raise InputError(f"{path}: {min(keys & seen)} stands there twice; remove one")
        seen |= keys
        parts.append(part)
    return Space(method, trials, tuple(parts))


def _content(path: Path) -> dict[str, Any]:
    """A space file's YAML, with `space` a table and no unknown key."""
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError:
        shipped = ", ".join(sorted(file.stem for file in SPACES.glob("*.yaml")))
        raise InputError(f"no space file {path}; give one, or the name of one that is shipped: {shipped}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no YAML: {error}") from None
    if not isinstance(content, dict) or not isinstance(content.get("space"), dict) or not content["space"]:
        raise InputError(f"{path} must hold `method`, `trials` and `space`, with a line for each setting in `space`")
    for key in content:
        if key not in ("method", "trials", "space"):
            near = difflib.get_close_matches(str(key), ("method", "trials", "space"), n=1)
            raise InputError(f"{path} has an unknown key {key!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    return content


def _part(name: str, values: Any, path: Path, stage: str, preset: Preset) -> list[Settings] | Range:
    """One line of `space`: a range, or a list of choices, each a group of settings."""
    checked = functools.partial(_checked, path=path, stage=stage, preset=preset)
    if isinstance(values, dict):
        if not {"low", "high"} <= set(values) <= {"low", "high", "log"}:
            raise InputError(f"{path}: {name} must be a list or a range {{low, high, log}}, not {values!r}")
        low, high = (checked({name: values[end]})[name] for end in ("low", "high"))
        log = values.get("log", False)
        if not isinstance(low, float) or not isinstance(log, bool):
            raise InputError(f"{path}: {name} is no setting to draw from a range; list the values to try")
        if not (0 if log else -math.inf) < low < high < math.inf:
            raise InputError(f"{path}: {name} must go from a low to a high value" + (", both above 0" if log else ""))
        return Range(name, low, high, log)
    if not isinstance(values, list) or not values:
        raise InputError(f"{path}: {name} must be a list or a range {{low, high, log}}, not {values!r}")
    return [checked(value if isinstance(value, dict) else {name: value}) for value in values]


def _checked(settings: Mapping[Any, Any], path: Path, stage: str, preset: Preset) -> Settings:
    """The settings as the preset would have them: 1e-5, which YAML takes for a text, as the number."""
    settings = {str(key): value for key, value in settings.items()}
    try:
        changed = override(preset, settings)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    for key in settings:
        if not key.startswith(f"{stage}.") or key == f"{stage}.training.validate":
            raise InputError(f"{path}: a search of {stage} cannot change {key}, only other settings of {stage}")
    found = {key: functools.reduce(getattr, key.split("."), changed) for key in settings}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in found.items()}


def trials(space: Space, count: int | None = None, seed: int = 0) -> list[Settings]:
    """The trials of a space, each once: a grid's every combination, or `count` (by default the file's) at random.

    A random search of more trials with the same seed begins with those of one with fewer.
    """
    if space.method == "grid":
        if count is not None:
            raise InputError("a grid has as many trials as it has combinations; leave the number out")
        every = [_merged(choice) for choice in itertools.product(*space.parts)]
        return list({name_of(settings): settings for settings in every}.values())
    count = count or space.trials
    if not count or count < 1:
        raise InputError("say how many trials a random search has, with `trials` in the space file or --trials")
    drawn: dict[str, Settings] = {}
    for number in range(DRAWS * count):
        rng = np.random.default_rng((seed, number))
        chosen = _merged(
            {part.key: part.draw(rng)} if isinstance(part, Range) else part[rng.integers(len(part))]
            for part in space.parts
        )
        drawn.setdefault(name_of(chosen), chosen)
        if len(drawn) == count:
            break
    return list(drawn.values())


def _merged(parts: Iterable[Settings]) -> Settings:
    return {key: value for part in parts for key, value in part.items()}


def name_of(settings: Settings) -> str:
    """A trial's name: the same for the same settings, in whatever order."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:10]
