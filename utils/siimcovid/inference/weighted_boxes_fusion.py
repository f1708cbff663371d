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

import numpy as np
import pandas as pd
import torch
from numba import njit
from torchvision.ops import nms

from siimcovid.core.errors import InputError

COLUMNS = ["image_id", "model", "score", "x1", "y1", "x2", "y2"]
ENSEMBLE = "ensemble"


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
    scores of the others' boxes there. weights: one for each of models, 1 by default, multiplied with its scores.
    iou: fusion's threshold. nms_iou: a fused box that overlaps a better one by more is dropped. max_boxes: the most
    that are kept for an image, the best first.
    Boxes are clipped to the image; those without area or score, or not finite, are left out.
    Raises InputError where the weights do not fit the models, or are not above 0.
    """
    weights = [1.0] * len(models) if weights is None else list(weights)
    if len(weights) != len(models) or min(weights, default=1.0) <= 0:
        raise InputError(f"fusion needs a weight above 0 for each of {', '.join(models)}, not {weights}")
    boxes = detections[["x1", "y1", "x2", "y2"]].to_numpy(dtype=float).clip(0, 1)
    scores = detections["score"].to_numpy(dtype=float)
    model = pd.Index(models).get_indexer(detections["model"])
    usable = (
        (model >= 0) & np.isfinite(scores) & (scores > 0) & (boxes[:, 0] < boxes[:, 2]) & (boxes[:, 1] < boxes[:, 3])
    )
    boxes, scores, model = boxes[usable], scores[usable], model[usable]
    scores = scores * np.array(weights)[model]

    image, names = pd.factorize(detections["image_id"][usable], sort=True)
    order = np.lexsort((model, -scores, image))
    starts = np.cumsum(np.bincount(image + 1, minlength=len(names) + 1))
    scores, boxes, image = _fuse_images(scores[order], boxes[order], starts, iou, len(models), float(sum(weights)))
    order = np.lexsort((-scores, image))
    scores, boxes, image = scores[order], boxes[order], image[order]

    starts = np.searchsorted(image, np.arange(len(names) + 1))
    score_tensor, box_tensor = torch.from_numpy(scores), torch.from_numpy(boxes)
    kept = [np.empty(0, dtype=int)]
    for first, last in itertools.pairwise(starts.tolist()):
        best = nms(box_tensor[first:last], score_tensor[first:last], nms_iou)  # by descending score
        kept.append(first + best[:max_boxes].numpy())
    kept = np.concatenate(kept)
    fused = {"image_id": np.asarray(names, dtype=object)[image[kept]], "model": ENSEMBLE, "score": scores[kept]}
    fused |= dict(zip(COLUMNS[3:], boxes[kept].T, strict=True))
    return pd.DataFrame(fused, columns=COLUMNS)


def none_confidence(detections: pd.DataFrame, image_ids: Iterable[str]) -> pd.Series:
    """Confidence that an image has no opacity: 1 - its highest score, 1 where nothing was detected.

    image_ids: the images that the detectors predicted, in the order of the result's index.
    """
    highest = detections.groupby("image_id")["score"].max()
    return 1.0 - highest.reindex(list(image_ids), fill_value=0.0).rename("none")


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
