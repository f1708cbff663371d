"""The gallery: the best, the worst and the most confident errors, each image with the true and every model's boxes.

In: a RunFolder. Out: groups of Examples. The report's Figure 16 shows five images at random; here the ensemble's boxes
choose them. For an image with true boxes, quality is the mean over them of the confidence with which each was found (0
for a missed one), less the highest confidence of a box that is none.
"""

import base64
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
import pandas as pd

from siimcovid.core.errors import InputError
from siimcovid.core.labels import STUDY_LABELS
from siimcovid.data import image_cache
from siimcovid.evaluation.mean_average_precision import match
from siimcovid.evaluation.report_tables import THRESHOLD
from siimcovid.reporting.figures import MODEL_NAMES, TRUTH
from siimcovid.reporting.html.page_blocks import Example, Examples, Panel
from siimcovid.reporting.run_folder import ENSEMBLE, FIRST, RunFolder

#: Images in each group.
SHOWN = 3
#: Longest side of an image on the page, in pixels, and its JPEG quality.
SIDE, QUALITY = 448, 82
#: Width and height of a label such as 0.53, in the same pixels.
LABEL = (44, 20)


class Verdict(NamedTuple):
    """How well one image's boxes fit the ground truth."""

    image_id: str
    quality: float
    false_alarm: float  # highest confidence of a box that is none; 0 without one
    true_boxes: int


def verdicts(found: pd.DataFrame, boxes: dict[str, list[list[float]]]) -> list[Verdict]:
    """A Verdict for every image of `boxes` (image_id -> true boxes); found: one model's detections."""
    by_image = dict(iter(found.groupby("image_id")))
    rows = []
    for image_id, true in boxes.items():
        table = by_image.get(image_id, found[:0])
        corners = table[["x1", "y1", "x2", "y2"]].to_numpy(dtype=float)
        zeros = np.zeros(len(table), dtype=int), np.zeros(len(true), dtype=int)
        truth = np.array(true, dtype=float).reshape(-1, 4)
        confidence, hit, count = match(zeros[0], table["score"].to_numpy(dtype=float), corners, zeros[1], truth)
        alarm = float(confidence[~hit].max(initial=0.0))
        rows.append(Verdict(image_id, float(confidence[hit].sum()) / max(1, count) - alarm, alarm, count))
    return rows


def choose(rows: Sequence[Verdict], wrong_labels: Sequence[str]) -> dict[str, list[str]]:
    """The image ids of each group, SHOWN at most, each image in the first group that wants it.

    wrong_labels: images of studies whose study label is wrong, the most confident first.
    """
    with_boxes = [row for row in rows if row.true_boxes]
    wanted = {
        "best": [r.image_id for r in sorted(with_boxes, key=lambda r: (-r.quality, r.image_id))],
        "worst": [r.image_id for r in sorted(with_boxes, key=lambda r: (r.quality, r.image_id))],
        "false": [r.image_id for r in sorted(rows, key=lambda r: (-r.false_alarm, r.image_id)) if r.false_alarm],
        "study_label": list(wrong_labels),
    }
    taken: set[str] = set()
    chosen = {}
    for group, ids in wanted.items():
        chosen[group] = [image_id for image_id in ids if image_id not in taken][:SHOWN]
        taken.update(chosen[group])
    return chosen


TITLES = {
    "best": ("Best", "True boxes found with the highest confidence and nothing else marked."),
    "worst": ("Worst", "True boxes missed, or found with little confidence beside false ones."),
    "false": (
        "Most confident false boxes",
        "Images with the ensemble's most confident boxes that the ground truth does not have.",
    ),
    "study_label": (
        "Most confident wrong study labels",
        "Images of studies for which the study model gives a wrong study label a high probability.",
    ),
    "no_truth": (
        "Most confident boxes",
        "There is no ground truth, so these are the images with the ensemble's most confident boxes.",
    ),
}


def example_groups(run: RunFolder) -> list[Examples]:
    """The gallery's groups that have images; none before the run has detected, or where its cache is gone."""
    if run.detections is None or run.index is None:
        return []
    tests = run.index[run.index["split"] == "test"].set_index("image_id")
    found = run.detections[run.detections["model"] == ENSEMBLE]
    truth, true_study_labels = None, {}
    if run.ground_truth is None:
        best = found.groupby("image_id")["score"].max()
        order = sorted(best.index, key=lambda image_id: (-best[image_id], image_id))
        chosen = {"no_truth": order[:SHOWN]}
    else:
        sizes = {
            i: (rows, columns) for i, rows, columns in zip(tests.index, tests["rows"], tests["columns"], strict=True)
        }
        truth, true_study_labels = run.ground_truth.boxes(sizes), run.ground_truth.study_labels()
        prepared = {name: boxes for name, boxes in truth.items() if (run.cache / f"{name}.png").is_file()}
        chosen = choose(verdicts(found, prepared), _wrong_labels(run, tests, true_study_labels, set(prepared)))
    models = [name for name in (*FIRST, ENSEMBLE) if (run.detections["model"] == name).any()]
    groups = []
    for group, image_ids in chosen.items():
        examples = [
            _example(run, image_id, truth, models, _label_words(run, tests, true_study_labels, image_id))
            for image_id in image_ids
        ]
        if examples := [example for example in examples if example is not None]:
            groups.append(Examples(*TITLES[group], examples))
    return groups


def _wrong_labels(
    run: RunFolder, tests: pd.DataFrame, true_study_labels: dict[str, str], prepared: set[str]
) -> list[str]:
    """The first image of each study whose most probable study label is not the true one, the most probable first."""
    if run.study_probs is None:
        return []
    wrong = []
    for study, *values in run.study_probs[["study_id", *STUDY_LABELS]].itertuples(index=False):
        predicted = STUDY_LABELS[int(np.argmax(values))]
        images = [image_id for image_id in tests.index[tests["study_id"] == study] if image_id in prepared]
        if images and study in true_study_labels and true_study_labels[study] != predicted:
            wrong.append((-max(values), images[0]))
    return [image_id for _, image_id in sorted(wrong)]


def _label_words(run: RunFolder, tests: pd.DataFrame, true_study_labels: dict[str, str], image_id: str) -> str:
    study = tests["study_id"].get(image_id)
    words = f"true study label {true_study_labels[study]}" if study in true_study_labels else ""
    if run.study_probs is not None and (rows := run.study_probs[run.study_probs["study_id"] == study]).shape[0]:
        probabilities = rows.iloc[0][list(STUDY_LABELS)].astype(float)
        predicted = f"predicted {probabilities.idxmax()} at {probabilities.max():.2f}"
        words = f"{words}, {predicted}" if words else predicted
    return words


def _example(
    run: RunFolder, image_id: str, truth: dict[str, list] | None, models: Sequence[str], words: str
) -> Example | None:
    try:
        image = image_cache.fit(image_cache.read(run.cache, image_id), SIDE)
    except InputError:
        return None
    height, width = image.shape
    _, jpeg = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    panels = []
    if truth is not None:
        panels.append(_panel(TRUTH, [(1.0, *box) for box in truth.get(image_id, [])], width, height, ""))
    of_image = run.detections[(run.detections["image_id"] == image_id) & (run.detections["score"] >= THRESHOLD)]
    for model in models:
        rows = of_image.loc[of_image["model"] == model, ["score", "x1", "y1", "x2", "y2"]].to_numpy(dtype=float)
        panels.append(_panel(model, rows.tolist(), width, height, "{:.2f}"))
    encoded = base64.b64encode(jpeg.tobytes()).decode("ascii")
    caption = f"{image_id}: {words}" if words else image_id
    return Example(f"image-{image_id}", encoded, width, height, caption, panels)


def _panel(name: str, rows: Sequence[Sequence[float]], width: int, height: int, form: str) -> Panel:
    """A panel of boxes (score, x1, y1, x2, y2), the highest score first.

    form: how a score is written, "" for not at all.
    """
    title = MODEL_NAMES.get(name, name)
    boxes, labels = [], []
    for score, x1, y1, x2, y2 in rows:
        x, y, w, h = x1 * width, y1 * height, (x2 - x1) * width, (y2 - y1) * height
        boxes.append((*(round(value, 1) for value in (x, y, w, h)), round(min(1.0, 0.5 + score), 2)))
        if form and (place := _free_place((x, y, w, h), labels, width, height)):
            labels.append((*place, form.format(score)))
    scores = ", ".join(form.format(row[0]) for row in rows) if form else ""
    alt = f"{title}: {len(rows)} box{'' if len(rows) == 1 else 'es'}" + (f" of confidence {scores}" if scores else "")
    return Panel(name, title, boxes[::-1], labels, alt)  # the highest score is drawn last, on top


def _free_place(
    box: tuple[float, float, float, float], labels: Sequence, width: int, height: int
) -> tuple[float, float] | None:
    """Where a box's score hides none of a higher one: in one of its corners, or nowhere."""
    x, y, w, h = box
    for left in (x + 4, x + w - LABEL[0] - 4):
        for base in (y + LABEL[1], y + h - 6):
            left, base = min(max(left, 0), width - LABEL[0]), min(max(base, LABEL[1]), height - 2)
            if all(abs(left - other) >= LABEL[0] or abs(base - low) >= LABEL[1] for other, low, _ in labels):
                return round(left, 1), round(base, 1)
    return None
