"""The kernel's inputs, found and read even where they are damaged: what cannot be used is replaced and recorded.

In: the notebook's parameters. Out: a Run with its settings, its competition, its weights folder and, in its folder, the
first submission, from the train set's frequencies. Every fault goes through `Run.recover`, so with STRICT it raises.
"""

import json
import math
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from siimcovid.core import paths, tables
from siimcovid.core.errors import InputError
from siimcovid.core.files import write_text
from siimcovid.core.presets import load_preset
from siimcovid.data import competition
from siimcovid.data.dicom_headers import image_id_of
from siimcovid.evaluation import submission_csv
from siimcovid.kernel.run import Run

#: Where a competition folder with repaired ids is laid out, in the run's folder.
REPAIRED = "repaired"

SAMPLE = "sample_submission.csv"
KINDS = (submission_csv.STUDY, submission_csv.IMAGE)


def read_hours(hours: Any) -> float:
    """HOURS as a number. Raises InputError for anything that is none above 0."""
    try:
        value = float(hours)
    except (TypeError, ValueError):
        value = math.nan
    if not value > 0:
        raise InputError(f"HOURS must be a number above 0, not {hours!r}")
    return value


def settings(run: Run, preset: str, mode: str, overrides: Mapping[str, Any] | str | None) -> None:
    """Check the parameters that say what runs; a wrong one leaves its default."""
    with run.recover("parameters", "MODE 'infer'"):
        if mode not in ("finetune", "infer"):
            raise InputError(f"MODE must be 'finetune' or 'infer', not {mode!r}")
        run.mode = mode
    with run.recover("parameters", f"PRESET {run.requested.name!r}"):
        run.requested = load_preset(preset)
    with run.recover("parameters", "the preset without OVERRIDES"):
        if isinstance(overrides, str):
            try:
                overrides = json.loads(overrides or "{}")
            except ValueError:
                raise InputError(
                    f'OVERRIDES must be JSON such as {{"rcnn.training.epochs": 3}}, not {overrides!r}'
                ) from None
        if not isinstance(overrides or {}, Mapping):
            raise InputError(f"OVERRIDES must be an object of settings, not {overrides!r}")
        changed = load_preset(run.requested.name, overrides)
        if changed.members < 1:
            raise InputError(f"members must be 1 or more, not {changed.members}")
        run.requested, run.overrides = changed, dict(overrides or {})
    run.preset = run.requested


def read_competition(run: Run, explicit: str) -> None:
    """Read the competition folder into the run; where its sample cannot be used, the ids come from test/."""
    folder = None
    with run.recover("index", "a folder that holds test/ or the sample is taken, if there is one"):
        folder = paths.find_competition(explicit)
    folder = folder or _any_folder(explicit)
    if folder is None:
        run.degrade("index", "no competition folder was found", "a submission of the header alone")
        return
    run.source = folder
    sample = None
    with run.recover("index", "its ids are completed from the names of the folders and files in test/"):
        sample = _sound_sample(folder)
    if sample is None:
        with run.recover("index", "a submission of the header alone"):
            folder = repair(folder, run.folder / REPAIRED)
            sample = _sound_sample(folder)
    splits = [("train", "test"), ("test",)] if run.mode == "finetune" else [("test",)]
    for wanted in splits:
        with run.recover("index", "without the train part" if "train" in wanted else "without any image"):
            run.competition = competition.load(folder, splits=wanted)
            return
    if sample is not None:
        run.competition = competition.Competition(folder, run.competition.images, sample, ())


def _any_folder(explicit: str) -> Path | None:
    """`explicit` where it is a folder, else the first one on Kaggle's mounts that holds a test/ of folders."""
    if explicit:
        folder = Path(explicit).expanduser()
        return folder if folder.is_dir() else None
    found = (path.parent for depth in ("*", "*/*", "*/*/*") for path in paths.KAGGLE_INPUT.glob(f"{depth}/test"))
    return next((folder for folder in found if next((folder / "test").glob("*/*"), None)), None)


def _sound_sample(folder: Path) -> pd.DataFrame:
    """The sample submission. Raises InputError where one of its ids is repeated, or of no kind."""
    path = tables.find_table(folder, SAMPLE)
    if path is None:
        raise InputError(f"no {SAMPLE} in {folder}")
    sample = tables.read_csv(path, ("id", "PredictionString"))
    ids = sample["id"]
    if sample.empty:
        raise InputError(f"{path} holds no ids")
    if list(sample.columns) != ["id", "PredictionString"]:
        raise InputError(f"{path} has the columns {', '.join(sample.columns)} instead of id and PredictionString")
    if strange := [name for name in ids if not _is_id(name)]:
        raise InputError(f"{path} has ids that end neither in _study nor in _image: {tables.some(strange)}")
    if ids.duplicated().any():
        raise InputError(f"{path} repeats ids: {tables.some(ids[ids.duplicated()].tolist())}")
    return sample


def _is_id(text: str) -> bool:
    stem = text.removesuffix(submission_csv.STUDY).removesuffix(submission_csv.IMAGE)
    return text.endswith(KINDS) and stem.isprintable() and bool(stem) and not set(stem) & set('",')


def repair(folder: Path, repaired: Path) -> Path:
    """Lay out `repaired`: test/ and train/ as they are, and a sample with an id for every study and image of test/.

    Ids of the damaged sample that are whole come first, in its order. Raises InputError where there is none of either.
    """
    ids = dict.fromkeys(_whole_ids(folder))
    images = filter(None, map(image_id_of, sorted((folder / "test").glob("*/*/[!.]*"))))
    studies = sorted(path.name for path in (folder / "test").glob("*") if path.is_dir())
    ids |= dict.fromkeys(f"{study}{submission_csv.STUDY}" for study in studies)
    ids |= dict.fromkeys(f"{image}{submission_csv.IMAGE}" for image in images)
    if not ids:
        raise InputError(f"{folder} has neither ids in {SAMPLE} nor images in test/")
    shutil.rmtree(repaired, ignore_errors=True)
    write_text(repaired / SAMPLE, "\n".join(["id,PredictionString", *(f"{name}," for name in ids)]) + "\n")
    for entry in folder.iterdir():
        if not entry.name.startswith(SAMPLE):
            (repaired / entry.name).symlink_to(entry.absolute())
    return repaired


def _whole_ids(folder: Path) -> Iterable[str]:
    """The ids of a damaged sample that can be read and are of one of the two kinds."""
    try:
        text = (folder / SAMPLE).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    ids = [line.split(",")[0].strip() for line in text.splitlines()[1:] if "," in line]
    return [name for name in ids if _is_id(name) and "�" not in name]


def find_weights(run: Run, explicit: str) -> None:
    """The weights folder; for fine-tuning `small` where none is named or mounted, one from the installed package."""
    with run.recover("weights", "whole files in the folder are taken unverified, if there are any"):
        try:
            folder = paths.find_weights(explicit)
        except InputError:
            if explicit or run.mode != "finetune" or run.requested.rcnn.backbone != "efficientnet_lite0":
                raise
            from siimcovid.models import published_weights

            folder = published_weights.import_weights("efficientnet_lite0", None, run.folder / "imagenet").parent
        run.weights = folder
        _check_manifest(folder)
        return
    folder = run.weights or Path(explicit or "/nowhere").expanduser()
    run.weights, run.verify = (folder, False) if any(folder.glob("*.safetensors")) else (None, True)


def read_combination(run: Run) -> None:
    """Take over the numbers by which answers are combined that lie beside the weights; OVERRIDES go before them."""
    with run.recover("weights", "the preset's own numbers combine the answers"):
        if run.weights is None or not run.verify:
            return
        from siimcovid.inference import fit_ensemble

        numbers = fit_ensemble.read(run.weights)
        if numbers:
            run.requested = run.preset = load_preset(run.requested.name, {**numbers, **run.overrides})
            print(f"answers are combined by {fit_ensemble.FILE} of {run.weights}")


def _check_manifest(folder: Path) -> None:
    from siimcovid.models import weights_manifest

    weights_manifest.read_manifest(folder)


def priors(run: Run) -> submission_csv.Priors:
    """Frequencies of this competition's train set; those of the real one where its train part was not read."""
    images = run.competition.images
    if images.loc[images["split"] == "train", "study_label"].notna().any():
        return submission_csv.train_priors(images)
    return submission_csv.COMPETITION_PRIORS
