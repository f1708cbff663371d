"""A finished run's folder without a model or an image of its own: what is in it can be worked out by hand."""

import json
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from siimcovid.core.labels import STUDY_COLUMNS, STUDY_LABELS
from siimcovid.data.competition import index_table, write_index
from siimcovid.evaluation.submission_csv import Priors, write_submission

ROWS, COLUMNS = 80, 100
PRIORS = Priors(dict.fromkeys(STUDY_LABELS, 0.25), 0.5)

#: study -> true study label, the four probabilities that were said.
STUDIES = {
    "s0": ("negative", [0.7, 0.1, 0.1, 0.1]),
    "s1": ("typical", [0.1, 0.8, 0.05, 0.05]),
    "s2": ("indeterminate", [0.05, 0.9, 0.03, 0.02]),  # surely wrong
    "s3": ("atypical", [0.3, 0.2, 0.2, 0.3]),  # wrong, not sure
}
LEFT, RIGHT = [0.1, 0.2, 0.4, 0.7], [0.6, 0.2, 0.9, 0.7]
#: image -> study, true boxes, boxes that were said as (score, box).
IMAGES = {
    "clear": ("s0", [], [(0.05, LEFT)]),
    "found": ("s1", [LEFT, RIGHT], [(0.9, LEFT), (0.8, RIGHT)]),
    "half": ("s2", [LEFT, RIGHT], [(0.6, LEFT), (0.55, [0.4, 0.8, 0.5, 0.9])]),
    "missed": ("s3", [RIGHT], [(0.7, LEFT)]),
}
MODELS = ("rcnn", "yolo", "ensemble")


def write_run(folder: Path) -> Path:
    """Write `folder`/competition.truth and `folder`/run, and return the run's folder."""
    truth, run = folder / "competition.truth", folder / "run"
    (run / "cache").mkdir(parents=True)
    (run / "weights").mkdir()
    _write_truth(truth)

    rows = [_index_row(name, study, "test", [], None) for name, (study, _, _) in IMAGES.items()]
    rows += [_index_row(f"train{i}", f"t{i}", "train", [LEFT, RIGHT][:i], STUDY_LABELS[i]) for i in range(3)]
    index = index_table(rows)
    write_index(index, run / "index.csv")

    found = [
        {"image_id": name, "model": model, "score": score, **dict(zip(("x1", "y1", "x2", "y2"), box, strict=True))}
        for model in MODELS
        for name, (_, _, said) in IMAGES.items()
        for score, box in said
        if model != "yolo" or score > 0.6  # YOLO finds less
    ]
    detections = pd.DataFrame(found)
    detections.to_csv(run / "detections.csv", index=False)
    study_probs = pd.DataFrame(
        [[study, *said] for study, (_, said) in STUDIES.items()], columns=["study_id", *STUDY_LABELS]
    )
    study_probs.to_csv(run / "study_probabilities.csv", index=False)
    sample = pd.DataFrame({"id": [*(f"{s}_study" for s in STUDIES), *(f"{i}_image" for i in IMAGES)]})
    sample["PredictionString"] = ""
    for model in MODELS:
        of_model = detections[detections["model"] == model]
        none = 1 - of_model.groupby("image_id")["score"].max().reindex(list(IMAGES), fill_value=0.0)
        path = run / ("submission.csv" if model == "ensemble" else f"submissions/{model}.csv")
        write_submission(sample, study_probs, none, of_model, index, path, PRIORS)

    for place, name in enumerate(IMAGES):
        cv2.imwrite(str(run / "cache" / f"{name}.png"), np.full((ROWS, COLUMNS), 40 * (place + 1), np.uint8))
    epochs = {"epoch": [1, 2], "loss": [2.0, 1.0], "box": [1.5, 0.6], "objectness": [0.5, 0.4]}
    table = pd.DataFrame({**epochs, "learning_rate": [0.01, 0.005], "metric": [0.2, 0.3], "seconds": [30.0, 31.0]})
    table.to_csv(run / "weights" / "yolo.metrics.csv", index=False)
    facts = {
        "mode": "finetune",
        "preset": {"name": "demo", "fusion": {"iou": 0.55}},
        "competition": str(folder / "competition"),
        "hours": 2,
        "seconds": {"index": 1.0, "fit yolo": 61.0, "submit": 0.2},
        "steps": [{"step": "fit yolo", "predicted_seconds": 50.0, "seconds": 61.0}],
    }
    (run / "run.json").write_text(json.dumps(facts))
    return run


def _write_truth(truth: Path) -> None:
    truth.mkdir(parents=True)
    (truth / "synthetic.json").write_text("{}")
    marks = [
        [f"{study}_study", *(int(study_label == name) for name in STUDY_LABELS)]
        for study, (study_label, _) in STUDIES.items()
    ]
    pd.DataFrame(marks, columns=["id", *STUDY_COLUMNS]).to_csv(truth / "test_study_level.csv", index=False)
    rows = []
    for name, (study, boxes, _) in IMAGES.items():
        pixels = [[x1 * COLUMNS, y1 * ROWS, x2 * COLUMNS, y2 * ROWS] for x1, y1, x2, y2 in boxes]
        label = " ".join(f"opacity 1 {a} {b} {c} {d}" for a, b, c, d in pixels) or "none 1 0 0 1 1"
        dicts = [{"x": a, "y": b, "width": c - a, "height": d - b} for a, b, c, d in pixels]
        rows.append((f"{name}_image", str(dicts) if dicts else "", label, study))
    columns = ["id", "boxes", "label", "StudyInstanceUID"]
    pd.DataFrame(rows, columns=columns).to_csv(truth / "test_image_level.csv", index=False)


def _index_row(name: str, study: str, split: str, boxes: list, study_label: str | None) -> dict:
    ids = {"image_id": name, "study_id": study, "series_id": "r", "patient_id": f"secret-{study}", "split": split}
    image = {"path": "", "rows": ROWS, "columns": COLUMNS, "in_sample": split == "test"}
    return {**ids, **image, "boxes": boxes, "study_label": study_label, "annotated": split == "train"}
