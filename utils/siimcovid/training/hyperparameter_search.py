"""A search for a stage's best settings: many short files of overrides, one held-out fold, one table.

In: a space file (YAML; see spaces/study.yaml), a preset, and what `stages.fit` wants. Out, in one folder:

    search.csv          a row per trial that has ended, best first: rank, trial, metric (of validation on the held-out
                        fold, in the best epoch), best_epoch, seconds (of training), the settings that the trial
                        changed, state (finished or failed), reason (of a failure)
    search.json         what all trials have in common; a search that differs in it is refused this folder
    trials/<trial>/     the trial's metrics and trial.json (its row); the checkpoint of the best trial only

A trial is named by its settings, so an ended one is not run again and an interrupted one goes on at its last epoch,
whatever was added to the space file meanwhile. Several processes, on several machines, may share the folder: each trial
is locked by the process that runs it, and the system unlocks those of a process that died. To repeat a failed trial,
remove its folder.

The trials are a grid or drawn at random (Bergstra and Bengio 2012), not proposed by Optuna: its sampler draws its first
ten at random too, about as many as can be afforded here, and what it proposes then depends on the order in which trials
end, so a search shared by two machines could not be repeated. The metric of the best of many is too good by the luck it
had: compare it with the preset's on another fold before it is believed.
"""

import difflib
import fcntl
import functools
import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml

from siimcovid.core.configuration import Preset
from siimcovid.core.errors import InputError
from siimcovid.core.files import make_folder, write_csv, write_json
from siimcovid.core.overrides import override, to_dict
from siimcovid.models import weights_manifest
from siimcovid.training.train_stage import fit
from siimcovid.training.training_loop import NotFiniteError

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
            raise InputError(f"{path}: {min(keys & seen)} stands there twice")
        seen |= keys
        parts.append(part)
    return Space(method, trials, tuple(parts))


def _part(name: str, values: Any, path: Path, stage: str, preset: Preset) -> list[Settings] | Range:
    def checked(settings: Mapping[Any, Any]) -> Settings:
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


def _merged(parts: Any) -> Settings:
    return {key: value for part in parts for key, value in part.items()}


def name_of(settings: Settings) -> str:
    """A trial's name: the same for the same settings, in whatever order."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:10]


def search(
    stage: str, runs: list[Settings], preset: Preset, images: pd.DataFrame, cache: Path, start: Path, out: Path
) -> pd.DataFrame:
    """Run the trials that have not ended, one after the other, and return the table.

    The images of fold `preset.fold` are held out. A trial that another process is running is left to it. `images`,
    `cache` and `start` are those of stages.fit.

    Raises:
        InputError: `out` is of a search with other settings or images.
    """
    out, preset = Path(out), override(preset, {f"{stage}.training.validate": True})
    _claim_folder(out, {"stage": stage, "preset": to_dict(preset), "images": _digest(images["image_id"])})
    for settings in runs:
        folder = out / "trials" / name_of(settings)
        with claimed(folder) as ours:
            if ours and not (folder / "trial.json").is_file():
                result = _run(stage, override(preset, settings), images, cache, start, folder)
                write_json(folder / "trial.json", {"settings": settings, **result})
        table = collect(out)
        write_csv(table, out / "search.csv")
        _keep_best(table, out, stage)
    return table


def _claim_folder(out: Path, facts: dict[str, Any]) -> None:
    facts, path = json.loads(json.dumps(facts)), out / "search.json"
    if path.is_file() and json.loads(path.read_text(encoding="utf-8")) != facts:
        raise InputError(f"{out} holds a search with another stage, preset, fold or images; give it another folder")
    write_json(path, facts)


def _digest(names: pd.Series) -> str:
    return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()


@contextmanager
def claimed(folder: Path) -> Iterator[bool]:
    """Whether this process has a trial to itself, for as long as it is in here."""
    make_folder(folder)
    with open(folder / "lock", "w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def _run(stage: str, preset: Preset, images: pd.DataFrame, cache: Path, start: Path, folder: Path) -> dict[str, Any]:
    """One trial: {"state", "metric", "best_epoch", "seconds", "reason"}."""
    failed = {"state": "failed", "metric": None, "best_epoch": None, "seconds": None}
    try:
        fit(stage, preset, images, cache, start, folder)
    except (NotFiniteError, torch.OutOfMemoryError) as error:
        (folder / f"{stage}.resume.pt").unlink(missing_ok=True)
        return {**failed, "reason": " ".join(str(error).split())}
    epochs = pd.read_csv(folder / f"{stage}.metrics.csv")
    if epochs["metric"].isna().all():
        return {**failed, "reason": "the held-out fold has nothing to measure by"}
    best = epochs.loc[epochs["metric"].idxmax()]
    return {
        "state": "finished",
        "metric": float(best["metric"]),
        "best_epoch": int(best["epoch"]),
        "seconds": round(float(epochs["seconds"].sum()), 1),
        "reason": "",
    }


def collect(out: Path) -> pd.DataFrame:
    """The table of all trials that have ended in a folder, best first; see the module's docstring for its columns."""
    rows = []
    for path in sorted((Path(out) / "trials").glob("*/trial.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        ending = {"state": found.pop("state"), "reason": found.pop("reason")}
        rows.append((path.parent.name, found, found.pop("settings"), ending))
    rows.sort(key=lambda row: -math.inf if row[1]["metric"] is None else row[1]["metric"], reverse=True)
    keys = dict.fromkeys(key for _, _, settings, _ in rows for key in settings)
    table = pd.DataFrame(
        [{"trial": name} | found | dict.fromkeys(keys) | settings | ending for name, found, settings, ending in rows],
        columns=["trial", "metric", "best_epoch", "seconds", *keys, "state", "reason"],
    )
    finished = int((table["state"] == "finished").sum())
    ranks = pd.array([*range(1, finished + 1), *[pd.NA] * (len(table) - finished)], dtype="Int64")
    table.insert(0, "rank", ranks)
    return table.astype({"best_epoch": "Int64"})


def _keep_best(table: pd.DataFrame, out: Path, stage: str) -> None:
    """Keep the best trial's checkpoint and no other: two dozen of them would fill a disk."""
    for trial in table["trial"][table["rank"] > 1]:
        for name in (f"{stage}.safetensors", weights_manifest.MANIFEST):
            (out / "trials" / trial / name).unlink(missing_ok=True)


def best(out: Path, table: pd.DataFrame) -> tuple[Path, Settings] | None:
    """The folder and the settings of the best trial; None where none has finished."""
    for trial in table["trial"][table["rank"] == 1]:
        folder = Path(out) / "trials" / trial
        return folder, json.loads((folder / "trial.json").read_text(encoding="utf-8"))["settings"]
    return None


def as_set(settings: Mapping[str, Any]) -> str:
    """Settings as text for a command line: --set KEY=VALUE …"""
    texts = {key: ",".join(map(str, value)) if isinstance(value, list) else value for key, value in settings.items()}
    return " ".join(f"--set {key}={text}" for key, text in texts.items())
