"""The kernel's steps, one function each, as the notebook calls them from `start` to `score`.

In: the notebook's parameters. Out, in one folder:

    submission.csv              the ensemble's submission; submissions/<model>.csv for each detector alone
    scores.json, boxes.csv      the scoreboard, where the answers are at hand
    index.csv, cache/           the index and the prepared films
    weights/                    the trained stages and their manifest: the WEIGHTS_DIR of MODE "infer"
    detections.csv, levels.csv  what the models said
    run.json                    the configuration, the seconds of each step, what did not fit
"""

import json
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from siimcovid import (
    CLASSES,
    LEVEL_COLUMNS,
    cache,
    checkpoint,
    competition,
    evaluate,
    metric,
    submission,
    validate,
    weights,
)
from siimcovid.errors import InputError
from siimcovid.files import atomic_path, write_json
from siimcovid.fuse import ENSEMBLE, fuse, none_confidence
from siimcovid.paths import find_competition, find_weights
from siimcovid.predict import predict, study_levels
from siimcovid.presets import Preset, load_preset, to_dict
from siimcovid.stages import fit as fit_stage
from siimcovid.tables import find_table, read_csv

#: Frequencies of the competition's train set (counted on its own CSVs), where no train part is at hand.
COMPETITION_PRIORS = submission.Priors(
    {"negative": 1676 / 6054, "typical": 2855 / 6054, "indeterminate": 1049 / 6054, "atypical": 474 / 6054},
    none=2040 / 6334,
)

#: Share of the hours that is kept for what comes after training.
RESERVE = 0.25


@dataclass
class Run:
    """One run of the kernel: its inputs, its folder and what it has found out so far."""

    preset: Preset
    mode: str
    competition: competition.Competition
    weights: Path  # where stages start from, or are loaded from
    folder: Path
    hours: float
    started: float
    seconds: dict[str, float] = field(default_factory=dict)
    failures: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=cache.FAILURE_COLUMNS))

    @property
    def cache(self) -> Path:
        """The folder of prepared films."""
        return self.folder / "cache"

    @property
    def films(self) -> pd.DataFrame:
        """The index's rows whose film could be prepared."""
        images = self.competition.images
        return images[~images["image_id"].isin(self.failures["image_id"])]

    @property
    def test(self) -> pd.DataFrame:
        """The prepared films that the submission must answer, in the index's order."""
        return self.films[(self.films["split"] == "test") & self.films["in_sample"]]

    @property
    def truth(self) -> Path | None:
        """The folder with the held-back answers, `<competition>.truth` beside the competition, where it exists."""
        folder = self.competition.folder.with_name(self.competition.folder.name + ".truth")
        return folder if find_table(folder, "test_image_level.csv") else None

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Measure a step and keep run.json up to date."""
        begin = time.monotonic()
        yield
        self.seconds[step] = round(time.monotonic() - begin, 1)
        write_json(
            self.folder / "run.json",
            {
                "mode": self.mode,
                "preset": to_dict(self.preset),
                "seconds": self.seconds,
                "problems": list(self.competition.problems),
                "failures": self.failures.to_dict("records"),
            },
        )

    def may_start_epoch(self, seconds: float) -> bool:
        """Whether an epoch of that length leaves the reserve for inference untouched."""
        return time.monotonic() - self.started + seconds < self.hours * 3600 * (1 - RESERVE)


def start(
    competition_dir: str = "",
    weights_dir: str = "",
    output_dir: str = ".",
    preset: str = "full",
    mode: str = "infer",
    hours: float = 9.0,
    overrides: Mapping[str, Any] | str | None = None,
) -> Run:
    """Find the inputs, read the index and write the first, valid submission from the train set's frequencies.

    The arguments are the notebook's parameters; `overrides` may be JSON text, as papermill's `-p` passes it.
    """
    begin = time.monotonic()
    if isinstance(overrides, str):
        try:
            overrides = json.loads(overrides or "{}")
        except ValueError:
            raise InputError(
                f'OVERRIDES must be JSON such as {{"rcnn.training.epochs": 3}}, not {overrides!r}'
            ) from None
    if mode not in ("finetune", "infer"):
        raise InputError(f"MODE must be 'finetune' or 'infer', not {mode!r}")
    if not hours > 0:
        raise InputError(f"HOURS must be above 0, not {hours!r}")
    settings = load_preset(preset, overrides)
    folder = Path(output_dir).expanduser().absolute()
    folder.mkdir(parents=True, exist_ok=True)
    splits = ("train", "test") if mode == "finetune" else ("test",)
    found = competition.load(find_competition(competition_dir), splits=splits)
    run = Run(settings, mode, found, starting_weights(weights_dir, settings, mode, folder), folder, hours, begin)
    with run.timed("index"):
        competition.write_index(found.images, folder / "index.csv")
        submission.prior_submission(found.sample, folder / "submission.csv", priors(run))
    return run


def starting_weights(explicit: str, settings: Preset, mode: str, folder: Path) -> Path:
    """The weights folder; for fine-tuning `small` where none is named or mounted, one from the installed package."""
    try:
        return find_weights(explicit)
    except InputError:
        if explicit or mode != "finetune" or settings.rcnn.backbone != "efficientnet_lite0":
            raise
    return weights.import_weights("efficientnet_lite0", None, folder / "imagenet").parent


def priors(run: Run) -> submission.Priors:
    """Frequencies of this competition's train set; those of the real one where only the test part was read."""
    if (run.competition.images["split"] == "train").any():
        return submission.train_priors(run.competition.images)
    return COMPETITION_PRIORS


def prepare(run: Run) -> pd.DataFrame:
    """Prepare every film; returns those that could not be read, with the reason."""
    with run.timed("prepare"):
        run.failures = cache.prepare(run.competition.images, run.cache, run.preset.cache_size)
    return run.failures


def fit(run: Run) -> pd.DataFrame:
    """Train the stages (MODE finetune) or check those given (infer); returns a row per stage."""
    rows = []
    for stage in checkpoint.STAGES:
        with run.timed(f"fit {stage}"):
            if run.mode == "finetune":
                path = fit_stage(
                    stage, run.preset, run.films, run.cache, run.weights, run.folder / "weights", run.may_start_epoch
                )
                weights.register_trained(path, stage, run.preset, run.competition.folder.name)
            else:
                path = weights.verified(run.weights, f"{stage}.safetensors")
        facts = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        last = facts["epochs"][-1] if facts.get("epochs") else {}
        rows.append(
            {"stage": stage, "file": path.name, **{k: last.get(k) for k in ("epoch", "loss", "films_per_second")}}
        )
    return pd.DataFrame(rows)


def stage_file(run: Run, stage: str) -> Path:
    """The checkpoint that predictions use."""
    return (run.folder / "weights" if run.mode == "finetune" else run.weights) / f"{stage}.safetensors"


def detect(run: Run) -> pd.DataFrame:
    """Boxes of each detector and of their ensemble on the test films."""
    with run.timed("detect"):
        fusion, tables = run.preset.fusion, []
        for stage in checkpoint.DETECTORS:
            _, config, model = checkpoint.load(stage_file(run, stage))
            tables += [
                predict(stage, config, model, run.test, run.cache, flip)
                for flip in ((False, True) if fusion.flips else (False,))
            ]
        found = pd.concat(tables, ignore_index=True)
        weight = dict(zip(checkpoint.DETECTORS, fusion.weights, strict=True))
        weight |= {f"{stage}_flip": value for stage, value in weight.items()} if fusion.flips else {}
        fused = fuse(
            found,
            list(weight),
            weights=list(weight.values()),
            iou=fusion.iou,
            nms_iou=fusion.nms_iou,
            max_boxes=fusion.max_boxes,
        )
        detections = pd.concat([found, fused], ignore_index=True)
        _write_table(detections, run.folder / "detections.csv")
    return detections


def classify(run: Run) -> pd.DataFrame:
    """The four levels' probabilities of each test study, the mean over its films."""
    with run.timed("classify"):
        _, config, model = checkpoint.load(stage_file(run, "study"))
        levels = study_levels(predict("study", config, model, run.test, run.cache))
        _write_table(levels, run.folder / "levels.csv")
    return levels


def submit(run: Run, detections: pd.DataFrame, levels: pd.DataFrame) -> Path:
    """Write and check submission.csv from the ensemble, and one submission for each detector alone."""
    with run.timed("submit"):
        for model in (*checkpoint.DETECTORS, ENSEMBLE):
            path = submission_file(run, model)
            found = detections[detections["model"] == model]
            none = none_confidence(found, run.test["image_id"])
            images, sample = run.competition.images, run.competition.sample
            submission.write_submission(sample, levels, none, found, images, path, priors(run))
        verdict = validate.validate(
            path, find_table(run.competition.folder, "sample_submission.csv"), run.folder / "index.csv"
        )
        if verdict.faults:
            raise InputError(f"{path} is not valid: {'; '.join(map(str, verdict.faults[:3]))}")
    return path


def submission_file(run: Run, model: str) -> Path:
    """Where a model's submission lies: the ensemble's is the kernel's own."""
    return run.folder / ("submission.csv" if model == ENSEMBLE else f"submissions/{model}.csv")


def score(run: Run) -> pd.DataFrame | None:
    """The scoreboard, a row per detector and the ensemble: six APs, their mean, and the report's Table 1.

    Written to scores.json and boxes.json; None where no answers lie beside the competition.
    """
    if run.truth is None:
        return None
    with run.timed("score"):
        images = read_csv(find_table(run.truth, "test_image_level.csv"), ("id", "label"))
        studies = read_csv(find_table(run.truth, "test_study_level.csv"), ("id", *LEVEL_COLUMNS))
        scores, boxes = {}, {}
        for model in (*checkpoint.DETECTORS, ENSEMBLE):
            answers = submission.read_table(submission_file(run, model), ("id", "PredictionString"))
            matches = metric.match_classes(metric.compare(answers, images, studies))
            scores[model] = metric.average_precisions(matches)
            boxes[model] = evaluate.box_figures(matches["opacity"], threshold=0.3)
        known = {m: {k: None if math.isnan(v) else v for k, v in row.items()} for m, row in scores.items()}
        write_json(run.folder / "scores.json", known)  # a class without truth has no AP
        table = pd.DataFrame(scores).T[[*CLASSES, "mean"]]
        return table.join(pd.DataFrame(boxes).T.drop(columns="mAP@.50"))


def _write_table(table: pd.DataFrame, path: Path) -> None:
    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=False)


def true_boxes(run: Run) -> pd.DataFrame | None:
    """The held-back boxes of the test films as fractions: image_id, boxes; None where there are no answers."""
    if run.truth is None:
        return None
    answers = read_csv(find_table(run.truth, "test_image_level.csv"), ("id", "boxes"))
    images = run.test.set_index("image_id")
    rows = []
    for name, text in zip(answers["id"].str.removesuffix("_image"), answers["boxes"], strict=True):
        if name in images.index:
            pixels = competition.parse_boxes(text, name) if isinstance(text, str) and text else []
            fractions, _ = competition.box_fractions(pixels, *images.loc[name, ["rows", "columns"]])
            rows.append((name, fractions))
    return pd.DataFrame(rows, columns=["image_id", "boxes"])
