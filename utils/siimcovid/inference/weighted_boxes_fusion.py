"""Several detectors' boxes become one ensemble's: weighted boxes fusion, then non-maximum suppression.

In and out: the detections table, image_id, model, score, x1, y1, x2, y2 (fractions of the original image), sorted by
image_id and descending score; what comes out has the model "ensemble".

Report, section 3.3, after Solovyev and Wang (arXiv:1910.13302). An image's boxes are taken by descending score. One
joins the cluster whose fused box it overlaps most, if that IoU is above `iou`, and otherwise founds a cluster. A
cluster of T boxes has their mean score (equation 3) and their mean corners weighted by score (4, 5); when all boxes are
placed, the score is scaled by min(T, M) / M for M models (6). Non-maximum suppression by torchvision follows.

This is `ensemble_boxes.weighted_boxes_fusion` (conf_type "avg", no threshold on scores), rounding to float32 where it
does, compiled by numba, which that library brings with it: its own loop in Python takes 14 ms for an image with two
times 100 boxes, a minute and a half for the competition. Results are the library's, which the tests run beside it; only
equal scores, whose order it leaves to an unstable sort, are taken here in the order of `models` and of the table.
"""

import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from numba import njit
from torchvision.ops import nms

from siimcovid.core.errors import InputError
from siimcovid.evaluation.mean_average_precision import descending_order

COLUMNS = ["image_id", "model", "score", "x1", "y1", "x2", "y2"]
ENSEMBLE = "ensemble"


class UsableBoxes(NamedTuple):
    """The boxes of several models that can be fused, by image, and within it in the order of the models."""

    scores: np.ndarray  # (n,) above 0
    boxes: np.ndarray  # (n, 4) xyxy fractions, clipped to the image
    model: np.ndarray  # (n,) place among the models
    image: np.ndarray  # (n,) place in `names`
    names: pd.Index  # the images' ids, sorted


def fuse(
    detections: pd.DataFrame,
    models: Sequence[str],
    *,
    weights: Sequence[float] | None = None,
    iou: float = 0.55,
    nms_iou: float = 0.5,
    max_boxes: int = 100,
) -> pd.DataFrame:
    """Fuse the detections of `models` into those of the model "ensemble"; same schema, same bytes on every run.

    models: those that predicted these images; rows of others are ignored. One that found nothing on an image lowers the
    scores of the others' boxes there. weights: one for each of models, 1 by default, multiplied with its scores; one of
    weight 0 is left out as if it were not there.
    iou: fusion's threshold. nms_iou: a fused box that overlaps a better one by more is dropped. max_boxes: the most
    that are kept for an image, the best first.
    Boxes are clipped to the image; those without area or score, or not finite, are left out.
    Raises InputError where the weights do not fit the models, are below 0 or all 0.
    """
    weights = [1.0] * len(models) if weights is None else list(weights)
    found = usable_boxes(detections, models)
    scores, boxes, image = fuse_boxes(found, models, weights, iou, nms_iou, max_boxes)
    fused = {"image_id": found.names.to_numpy(dtype=object)[image], "model": ENSEMBLE, "score": scores}
    fused |= dict(zip(COLUMNS[3:], boxes.T, strict=True))
    return pd.DataFrame(fused, columns=COLUMNS)


def usable_boxes(detections: pd.DataFrame, models: Sequence[str]) -> UsableBoxes:
    """The boxes of `models` as arrays: made once where the same boxes are fused in several ways."""
    boxes = detections[["x1", "y1", "x2", "y2"]].to_numpy(dtype=float).clip(0, 1)
    scores = detections["score"].to_numpy(dtype=float)
    model = pd.Index(models).get_indexer(detections["model"])
    usable = (
        (model >= 0) & np.isfinite(scores) & (scores > 0) & (boxes[:, 0] < boxes[:, 2]) & (boxes[:, 1] < boxes[:, 3])
    )
    image, names = pd.factorize(detections["image_id"][usable], sort=True)
    order = np.lexsort((model[usable], image))
    chosen = np.flatnonzero(usable)[order]
    return UsableBoxes(scores[chosen], boxes[chosen], model[chosen], image[order], pd.Index(names))


def fuse_boxes(
    found: UsableBoxes, models: Sequence[str], weights: Sequence[float], iou: float, nms_iou: float, max_boxes: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`fuse` on arrays: scores (k,), boxes (k, 4) and images (k,) of the fused boxes, by image and descending score."""
    if len(weights) != len(models) or min(weights, default=1) < 0 or (models and not any(weights)):
        raise InputError(f"fusion needs a weight for each of {', '.join(models)}, one of them above 0, not {weights}")
    scores = found.scores * np.array(weights, dtype=float)[found.model]
    used = np.flatnonzero(scores > 0)
    starts = _starts(found.image[used], len(found.names))
    order = used[_by_image_descending(scores[used], found.image[used])]
    counted = sum(weight > 0 for weight in weights)
    scores, boxes, image = _fuse_images(scores[order], found.boxes[order], starts, iou, counted, float(sum(weights)))
    starts = _starts(image, len(found.names))
    order = _by_image_descending(scores, image)
    scores, boxes, image = scores[order], boxes[order], image[order]

    score_tensor, box_tensor = torch.from_numpy(scores), torch.from_numpy(boxes)
    kept = [np.empty(0, dtype=int)]
    for first, last in itertools.pairwise(starts.tolist()):
        best = nms(box_tensor[first:last], score_tensor[first:last], nms_iou)  # by descending score
        kept.append(first + best[:max_boxes].numpy())
    kept = np.concatenate(kept)
    return scores[kept], boxes[kept], image[kept]


def none_confidence(detections: pd.DataFrame, image_ids: Iterable[str]) -> pd.Series:
    """Confidence that an image has no opacity: 1 - its highest score, 1 where nothing was detected.

    image_ids: the images that the detectors predicted, in the order of the result's index.
    """
    highest = detections.groupby("image_id")["score"].max()
    return 1.0 - highest.reindex(list(image_ids), fill_value=0.0).rename("none")


def _starts(image: np.ndarray, images: int) -> np.ndarray:
    """(images + 1,) where the rows of each image begin, and where they end; image: (n,), sorted."""
    return np.cumsum(np.bincount(image + 1, minlength=images + 1))


def _by_image_descending(scores: np.ndarray, image: np.ndarray) -> np.ndarray:
    """The order (n,) by image, and by descending score within it, equal ones as they were."""
    order = descending_order(scores)
    small = image.astype(np.uint16) if image.max(initial=0) < 1 << 16 else image  # numpy sorts these in linear time
    return order[np.argsort(small[order], kind="stable")]


@njit
def _fuse_images(scores, boxes, starts, iou, models, total_weight):
    """Weighted boxes fusion of every image by itself.

    scores (n,), boxes (n, 4): by image, and by descending score within it; image i has rows starts[i] to starts[i + 1].
    Returns scores (k,), boxes (k, 4) and images (k,) of the fused boxes, by image but not sorted within it.
    """
    n = len(scores)
    fused = np.empty((n, 4))  # each cluster's box so far: equations 4 and 5
    corner_sums = np.zeros((n, 4), dtype=np.float32)  # of score * corner; float32 as in the library
    score_sums, sizes, images = np.zeros(n), np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int64)
    end = 0  # clusters so far
    for image in range(len(starts) - 1):
        begin = end
        for i in range(starts[image], starts[image + 1]):
            x1, y1, x2, y2 = boxes[i, 0], boxes[i, 1], boxes[i, 2], boxes[i, 3]
            best, highest = end, iou
            for c in range(begin, end):
                width = min(x2, fused[c, 2]) - max(x1, fused[c, 0])
                height = min(y2, fused[c, 3]) - max(y1, fused[c, 1])
                if width > 0 and height > 0:
                    shared = width * height
                    area = (fused[c, 2] - fused[c, 0]) * (fused[c, 3] - fused[c, 1])
                    overlap = shared / (area + (x2 - x1) * (y2 - y1) - shared)
                    if overlap > highest:
                        best, highest = c, overlap
            score_sums[best] += scores[i]
            sizes[best] += 1
            for corner in range(4):
                corner_sums[best, corner] += scores[i] * boxes[i, corner]
                if best == end:  # its own box, not rounded
                    fused[best, corner] = boxes[i, corner]
                else:
                    fused[best, corner] = np.float32(corner_sums[best, corner] / score_sums[best])
            if best == end:
                images[best] = image
                end += 1
    fused_scores = np.empty(end)
    for c in range(end):
        mean = score_sums[c] / sizes[c]
        if sizes[c] > 1:
            mean = np.float64(np.float32(mean))
        fused_scores[c] = mean * min(models, sizes[c]) / total_weight
    return fused_scores, fused[:end], images[:end]
