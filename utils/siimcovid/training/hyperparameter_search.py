"""A search for a stage's best settings: many short files of overrides, one held-out fold, one table.

In: trials of a space (search_space.py), a preset, and what `train_stage.fit` wants. Out, in one folder:

    search.csv          a row per trial that has ended, best first: rank, trial, metric (of validation on the held-out
                        fold, in the best epoch), best_epoch, seconds (of training), the settings that the trial
                        changed, state (finished or failed), reason (of a failure)
    search.json         what the trials have in common (training_identity.py); another search is refused this folder
    trials/<trial>/     the trial's metrics and trial.json (its row); the checkpoint of the best trial only

A trial is named by its settings, so an ended one is not run again and an interrupted one goes on at its last epoch,
whatever was added to the space file meanwhile. Several processes, on several machines, may share the folder: each trial
is locked by the process that runs it, and the system unlocks those of a process that died. To repeat a failed trial,
remove its folder.

Optuna 5 was tried in its place, with a journal for storage. Of a random search that two processes share with one seed
it ran each of 8 trials twice, since its sampler starts anew in every process; of one that was killed in its fourth
trial the three before ran again. Of a grid of 12 that two share it ran one twice. Where all trials are put into the
journal beforehand, that of a killed process stays "running" for ever and is lost. What it would save is the ten lines
of `search_space.trials`, for five more packages.

The metric of the best of many is too good by the luck it had: compare it with the preset's on another fold before it is
believed.
"""

import fcntl
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from siimcovid.core.configuration import Preset
from siimcovid.core.errors import InputError
from siimcovid.core.files import make_folder, write_csv, write_json
from siimcovid.core.memory_errors import is_out_of_memory
from siimcovid.core.overrides import override
from siimcovid.models import weights_manifest
from siimcovid.training.frozen_features import FeatureCache
from siimcovid.training.search_space import Settings, name_of
from siimcovid.training.train_stage import fit, identity_of
from siimcovid.training.training_identity import differences
from siimcovid.training.training_loop import NotFiniteError


def search(
    stage: str, runs: list[Settings], preset: Preset, images: pd.DataFrame, cache: Path, start: Path | None, out: Path
) -> pd.DataFrame:
    """Run the trials that have not ended, one after the other, and return the table.

    The images of fold `preset.fold` are held out. A trial that another process is running is left to it. `images`,
    `cache` and `start` are those of train_stage.fit.

    Raises:
        InputError: `out` is of a search with other settings or images.
    """
    out, preset = Path(out), override(preset, {f"{stage}.training.validate": True})
    _claim_folder(out / "search.json", identity_of(stage, preset, images, cache, start))
    features = FeatureCache()
    for settings in runs:
        folder = out / "trials" / name_of(settings)
        with claimed(folder) as ours:
            if ours and not (folder / "trial.json").is_file():
                result = _run(stage, override(preset, settings), images, cache, start, folder, features)
                write_json(folder / "trial.json", {"settings": settings, **result})
        table = collect(out)
        write_csv(table, out / "search.csv")
        _keep_best(table, out, stage)
    return table


def _claim_folder(path: Path, identity: Mapping[str, Any]) -> None:
    if path.is_file() and (changed := differences(json.loads(path.read_text(encoding="utf-8")), identity)):
        raise InputError(f"{path.parent} holds a search that differs in {', '.join(changed)}; give it another folder")
    write_json(path, identity)


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


def _run(
    stage: str,
    preset: Preset,
    images: pd.DataFrame,
    cache: Path,
    start: Path | None,
    folder: Path,
    features: FeatureCache,
) -> dict[str, Any]:
    """One trial: {"state", "metric", "best_epoch", "seconds", "reason"}."""
    failed = {"state": "failed", "metric": None, "best_epoch": None, "seconds": None}
    try:
        fit(stage, preset, images, cache, start, folder, features=features)
    except Exception as error:
        if not isinstance(error, NotFiniteError) and not is_out_of_memory(error):
            raise
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
