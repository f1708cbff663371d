"""Benchmarks of fusion and of the metric, on random boxes like those of two detectors."""

import numpy as np
import pandas as pd
from ensemble_boxes import weighted_boxes_fusion

from siimcovid.apps.benchmarks import Measured, best, race
from siimcovid.evaluation.mean_average_precision import average_precision
from siimcovid.inference.weighted_boxes_fusion import COLUMNS
from siimcovid.inference.weighted_boxes_fusion import fuse as fuse_table

IMAGES, BOXES = 6334, 100
IMAGES_OF_METRIC = 2000  # the loop is linear in boxes, and slow


def random_detections(images: int, rng: np.random.Generator) -> pd.DataFrame:
    """Two detectors' tables: BOXES boxes on each image, half of them around the places of opacities."""
    count = images * 2 * BOXES
    image = np.repeat(np.arange(images), 2 * BOXES)
    spread = np.where(rng.random(count) < 0.5, 0.03, 0.25)[:, None]
    centre = np.array([[0.28, 0.52], [0.74, 0.52]])[rng.integers(2, size=count)] + spread * rng.normal(size=(count, 2))
    half = np.array([0.11, 0.18]) * np.exp(0.3 * rng.normal(size=(count, 2)))
    corners = np.hstack([centre - half, centre + half]).clip(0, 1)
    score = rng.beta(0.3, 2, count)
    model = np.tile(np.repeat(["rcnn", "yolo"], BOXES), images)
    parts = [np.char.add("image", image.astype(str)).astype(object), model.astype(object), score, *corners.T]
    table = pd.DataFrame(dict(zip(COLUMNS, parts, strict=True)))
    return table.sort_values(["image_id", "score"], ascending=[True, False], ignore_index=True)


def fuse() -> Measured:
    """Weighted boxes fusion of a whole test set."""
    table = random_detections(IMAGES, np.random.default_rng(0))
    sample = table[table["image_id"].isin(table["image_id"].unique()[:40])]

    def library() -> list[tuple]:
        fused = []
        for _, rows in sample.groupby("image_id"):
            parts = [rows[rows["model"] == model] for model in ("rcnn", "yolo")]
            corners = [part[COLUMNS[3:]].to_numpy().tolist() for part in parts]
            scores, labels = [part["score"].tolist() for part in parts], [[0] * len(part) for part in parts]
            fused.append(weighted_boxes_fusion(corners, scores, labels, iou_thr=0.55))
        return fused

    image = pd.factorize(table["image_id"])[0]
    everything = {"iou": 0.55, "nms_iou": 1.0, "max_boxes": 10_000}  # so that fusion alone can be compared
    ours = fuse_table(sample, ["rcnn", "yolo"], **everything)
    for (_, rows), (boxes, scores, _) in zip(ours.groupby("image_id"), library(), strict=True):
        order = np.argsort(-scores, kind="stable")
        assert np.allclose(rows["score"], scores[order], atol=1e-6), "fused scores differ"
        assert np.allclose(np.sort(rows[COLUMNS[3:]].to_numpy(), 0), np.sort(boxes, 0), atol=1e-6), "boxes differ"
    found = race(library, lambda: fuse_table(table, ["rcnn", "yolo"]), 3, "processor")
    return Measured(
        f"weighted boxes fusion and suppression, two detectors' {BOXES} boxes each",
        f"ensemble_boxes on 40 images (without suppression) times {IMAGES / 40:.0f}",
        f"{IMAGES} images",
        found.baseline_s * IMAGES / 40,
        found.ours_s,
        "processor",
        {"sort": best(lambda: np.lexsort((-table["score"].to_numpy(), image)), 3, "processor")},
    )


def metric() -> Measured:
    """Average precision of `opacity`."""
    rng = np.random.default_rng(0)
    found = random_detections(IMAGES_OF_METRIC, rng)
    found = found[found["model"] == "rcnn"]
    rows = found["image_id"].str.removeprefix("image").astype(int).to_numpy()
    boxes, confidence = found[COLUMNS[3:]].to_numpy(), found["score"].to_numpy()
    truths = found.groupby("image_id").sample(2, random_state=0)
    truth_rows = truths["image_id"].str.removeprefix("image").astype(int).to_numpy()
    truth_boxes = truths[COLUMNS[3:]].to_numpy() + rng.normal(0, 0.005, (len(truths), 4))
    arguments = rows, confidence, boxes, truth_rows, truth_boxes
    raced = race(lambda: voc_loop(*arguments), lambda: average_precision(*arguments), 3, "processor")
    assert abs(raced.baseline - raced.ours) < 1e-9, f"average precision {raced.ours} instead of {raced.baseline}"
    return Measured(
        "average precision of one class",
        "the VOC development kit's loop over boxes, in Python with NumPy",
        f"{len(rows):,} boxes",
        *raced[:2],
        "processor",
        {"sort": best(lambda: np.argsort(-confidence), 3, "processor")},
    )


def voc_loop(
    rows: np.ndarray, confidence: np.ndarray, boxes: np.ndarray, truth_rows: np.ndarray, truth_boxes: np.ndarray
) -> float:
    """VOC's average precision as it is usually written in Python: prediction by prediction, each image's true boxes
    in an array; threshold and coordinates are the competition's. Arguments as in metric.match."""
    truths = {row: truth_boxes[truth_rows == row] for row in np.unique(truth_rows)}
    claimed = {row: np.zeros(len(found), bool) for row, found in truths.items()}
    hits = np.zeros(len(rows))
    for rank, k in enumerate(np.argsort(-confidence, kind="stable")):
        found = truths.get(rows[k])
        if found is None:
            continue
        low, high = np.maximum(found[:, :2], boxes[k, :2]), np.minimum(found[:, 2:], boxes[k, 2:])
        shared = np.prod(np.maximum(high - low, 0), axis=1)
        areas = np.prod(found[:, 2:] - found[:, :2], axis=1) + np.prod(boxes[k, 2:] - boxes[k, :2])
        overlaps = shared / (areas - shared)
        best_one = np.argmax(overlaps)
        if overlaps[best_one] > 0.5 and not claimed[rows[k]][best_one]:
            claimed[rows[k]][best_one] = True
            hits[rank] = 1
    recall = np.concatenate([[0], np.cumsum(hits) / len(truth_rows), [1]])
    precision = np.concatenate([[0], np.cumsum(hits) / np.arange(1, len(hits) + 1), [0]])
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall) * precision[1:]))
