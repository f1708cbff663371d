"""Fusion by hand (the report's equations 3 to 6), beside the library, and on degenerate input."""

import numpy as np
import pandas as pd
import pytest
from ensemble_boxes import weighted_boxes_fusion

from siimcovid.core.errors import InputError
from siimcovid.inference.weighted_boxes_fusion import COLUMNS, fuse, none_confidence

MODELS = ("rcnn", "yolo")
A1, A2 = (0.1, 0.1, 0.5, 0.5), (0.1, 0.2, 0.5, 0.6)  # IoU (.4 * .3) / (2 * .16 - .12) = .6
FAR = (0.6, 0.6, 0.9, 0.9)


def table(*rows):
    """Rows (image, model, score, box) as a detections table."""
    return pd.DataFrame([(image, model, score, *box) for image, model, score, box in rows], columns=COLUMNS)


def mean_box(*pairs):
    """Equations 4 and 5: corners weighted by score."""
    scores, boxes = np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs])
    return tuple(scores @ boxes / scores.sum())


# name, detections (model, score, box), options, expected (score, box)
BY_HAND = [
    ("both models agree", [("rcnn", 0.8, A1), ("yolo", 0.4, A2)], {}, [(0.6, mean_box((0.8, A1), (0.4, A2)))]),
    ("one model alone in this image", [("rcnn", 0.8, A1), ("yolo", 0.4, FAR)], {}, [(0.4, A1), (0.2, FAR)]),
    ("apart", [("rcnn", 0.8, A1), ("yolo", 0.4, A2)], {"iou": 0.65, "nms_iou": 0.62}, [(0.4, A1), (0.2, A2)]),
    ("suppressed after fusion", [("rcnn", 0.8, A1), ("yolo", 0.4, A2)], {"iou": 0.65, "nms_iou": 0.55}, [(0.4, A1)]),
    # equation 6 with T = 3 > M = 2 models: min(T, M) / M = 1
    ("three of two models", [("rcnn", 0.9, A1), ("rcnn", 0.6, A1), ("yolo", 0.3, A1)], {}, [(0.6, A1)]),
    # weighted scores .8 * 3 and .4 * 1; the sum of weights divides: (2.4 + .4) / 2 * 2 / 4
    ("weights", [("rcnn", 0.8, A1), ("yolo", 0.4, A2)], {"weights": (3, 1)}, [(0.7, mean_box((2.4, A1), (0.4, A2)))]),
    ("the better half is kept", [("rcnn", 0.8, FAR), ("yolo", 0.4, A2)], {"max_boxes": 1}, [(0.4, FAR)]),
    ("clipped", [("rcnn", 0.8, (-0.5, 0.5, 0.5, 1.5))], {}, [(0.4, (0, 0.5, 0.5, 1))]),
    ("without area", [("rcnn", 0.8, A1), ("yolo", 0.4, (0.2, 0.2, 0.2, 0.9))], {}, [(0.4, A1)]),
    ("without score", [("rcnn", 0.8, A1), ("yolo", 0.0, FAR), ("rcnn", 0.0, FAR)], {}, [(0.4, A1)]),
    ("not finite", [("rcnn", 0.8, A1), ("yolo", np.nan, A2), ("yolo", 0.4, (np.nan, 0, 1, 1))], {}, [(0.4, A1)]),
]  # fmt: skip


@pytest.mark.parametrize(("rows", "options", "expected"), [c[1:] for c in BY_HAND], ids=[c[0] for c in BY_HAND])
def test_by_hand(rows, options, expected):
    fused = fuse(table(*(("image", *row) for row in rows)), MODELS, **options)
    assert list(fused.columns) == COLUMNS
    assert set(fused["model"]) == {"ensemble"}
    assert fused["score"].tolist() == pytest.approx([score for score, _ in expected], rel=1e-6)
    boxes = fused[["x1", "y1", "x2", "y2"]].to_numpy()
    assert boxes == pytest.approx(np.array([box for _, box in expected]), rel=1e-6)


def test_a_model_that_found_nothing_counts_against_the_others():
    """Whoever looked is named; who did not is not among the models."""
    only = table(("image", "rcnn", 0.8, A1), ("other", "rcnn", 0.4, FAR))
    assert fuse(only, ("rcnn",))["score"].tolist() == [0.8, 0.4]
    assert fuse(only, MODELS)["score"].tolist() == pytest.approx([0.4, 0.2])
    both = pd.concat([only, table(("other", "yolo", 0.4, FAR))])
    assert fuse(both, MODELS)["score"].tolist() == pytest.approx([0.4, 0.4])
    assert fuse(both, ("rcnn",))["score"].tolist() == [0.8, 0.4]  # rows of other models are ignored


def random_table(seed, images=12, boxes=80):
    """Two models' crowded boxes. Scores, and means of scores, all differ: nothing hangs on the order of ties."""
    rng = np.random.default_rng(seed)
    n = images * boxes
    centre = np.where(rng.random((n, 1)) < 0.5, 0.3, 0.7) * [1, 0] + [0, 0.5] + rng.normal(0, 0.1, (n, 2))
    half = rng.uniform(0.05, 0.3, (n, 2))
    corners = np.hstack([centre - half, centre + half]).clip(0, 1)
    rows = {"image_id": [f"{k % images:02}" for k in range(n)], "model": rng.choice(MODELS, n)}
    rows |= {"score": rng.random(n), **dict(zip(COLUMNS[3:], corners.T, strict=True))}
    return pd.DataFrame(rows, columns=COLUMNS)


@pytest.mark.parametrize(("iou", "weights"), [(0.55, (1, 1)), (0.3, (2, 1)), (0.8, (1, 1.5))])
def test_equals_the_library(iou, weights):
    detections = random_table(1)
    fused = fuse(detections, MODELS, iou=iou, weights=weights, nms_iou=1.0, max_boxes=1000)
    for image, rows in detections.groupby("image_id"):
        models = [rows[rows["model"] == name] for name in MODELS]
        boxes, scores, _ = weighted_boxes_fusion(
            [part[COLUMNS[3:]].to_numpy() for part in models],
            [part["score"].to_numpy() for part in models],
            [np.zeros(len(part)) for part in models],
            weights=weights,
            iou_thr=iou,
        )
        ours = fused[fused["image_id"] == image]
        assert 10 < len(ours) == len(boxes)
        assert ours["score"].to_numpy() == pytest.approx(scores, rel=1e-6)
        assert ours[COLUMNS[3:]].to_numpy() == pytest.approx(boxes, rel=1e-6)


def test_order_and_bytes():
    """Sorted by image and falling score; the same bytes whatever the order of the rows, alone or among other images."""
    detections = random_table(2)
    fused = fuse(detections, MODELS)
    assert fused.equals(fused.sort_values(["image_id", "score"], ascending=[True, False], kind="stable"))
    shuffled = detections.sample(frac=1, random_state=0)
    assert fuse(shuffled, MODELS).to_csv() == fused.to_csv()
    alone = fuse(detections[detections["image_id"] == "07"], MODELS)
    assert alone.to_csv(index=False) == fused[fused["image_id"] == "07"].to_csv(index=False)


def test_equal_scores_in_the_order_of_models():
    """A1 founds the cluster, and A2, of the second model, does not swap places with it."""
    rows = ("image", "yolo", 0.5, A2), ("image", "rcnn", 0.5, A1)
    for ordered in (rows, rows[::-1]):
        fused = fuse(table(*ordered), MODELS, iou=0.65, nms_iou=0.55)
        assert fused[COLUMNS[3:]].to_numpy().tolist() == [list(A1)]


def test_nothing_to_fuse():
    fused = fuse(table(("image", "yolo", 0.5, A1))[:0], MODELS)
    assert list(fused.columns) == COLUMNS
    assert fused.empty
    assert fuse(table(("image", "else", 0.5, A1)), MODELS).empty


@pytest.mark.parametrize("weights", [(1,), (0, 0), (1, -1), (1, 1, 1)])
def test_weights_must_fit(weights):
    with pytest.raises(InputError, match="a weight for each of rcnn, yolo, one of them above 0"):
        fuse(random_table(0), MODELS, weights=weights)


def test_a_model_of_weight_0_is_as_if_it_were_not_there():
    found = random_table(0)
    alone = fuse(found[found["model"] == "yolo"], ("yolo",), weights=(2,))
    pd.testing.assert_frame_equal(fuse(found, MODELS, weights=(0, 2)), alone)


def test_none_confidence():
    detections = table(("b", "rcnn", 0.25, A1), ("b", "yolo", 0.75, A2), ("c", "yolo", 0.5, A2))
    found = none_confidence(detections, ["c", "a", "b"])
    assert found.to_dict() == {"c": 0.5, "a": 1.0, "b": 0.25}
    assert none_confidence(detections[:0], ["a"]).to_dict() == {"a": 1.0}
