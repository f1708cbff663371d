"""The six-class metric: cases worked by hand, two independent references on random boxes, and the command."""

import json

import numpy as np
import pandas as pd
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from siimcovid.apps.command_line import main
from siimcovid.core.errors import InputError
from siimcovid.core.labels import CLASSES, STUDY_COLUMNS, STUDY_LABELS
from siimcovid.evaluation.mean_average_precision import average_precision, descending_order, score

UNIT = (0, 0, 10, 10)
OTHER = (20, 20, 30, 30)
FAR = (50, 50, 60, 60)
NEAR_UNIT = (0, 0, 10, 9)  # IoU with UNIT .9

# name, predictions (image, confidence, box), truths (image, box), average precision as a formula
BY_HAND = [
    ("one hit", [(0, 0.9, UNIT)], [(0, UNIT)], 1),
    ("hit, miss, hit", [(0, 0.9, UNIT), (0, 0.8, FAR), (1, 0.7, UNIT)], [(k, UNIT) for k in range(3)], (1 + 2 / 3) / 3),
    ("precision from the right", [(0, 0.9, FAR), (0, 0.8, UNIT), (1, 0.7, UNIT)], [(0, UNIT), (1, UNIT)], 2 / 3),
    ("ranked over all images", [(0, 0.1, UNIT), (1, 0.9, FAR)], [(0, UNIT)], 1 / 2),
    ("image without truth", [(0, 0.5, UNIT), (7, 0.9, UNIT)], [(0, UNIT)], 1 / 2),
    ("matched once", [(0, 0.9, UNIT), (0, 0.8, UNIT), (0, 0.7, OTHER)], [(0, UNIT), (0, OTHER)], (1 + 2 / 3) / 2),
    ("the better claims, whatever the file's order", [(0, 0.1, NEAR_UNIT), (0, 0.9, UNIT)], [(0, UNIT)], 1),
    ("IoU of exactly a half", [(0, 0.9, (0, 0, 10, 20))], [(0, UNIT)], 0),
    ("IoU just above a half", [(0, 0.9, (0, 0, 10, 19.99))], [(0, UNIT)], 1),
    # Both predictions are nearest to the first truth; COCO would give the second prediction the second truth: AP 1.
    ("no falling back as in COCO", [(0, 0.9, UNIT), (0, 0.8, UNIT)], [(0, UNIT), (0, NEAR_UNIT)], 1 / 2),
    ("the nearest, not the first", [(0, 0.9, NEAR_UNIT), (0, 0.8, UNIT)], [(0, UNIT), (0, NEAR_UNIT)], 1),
    ("first of two equal truths", [(0, 0.9, UNIT), (0, 0.8, UNIT)], [(0, UNIT), (0, UNIT)], 1 / 2),
    ("tie, hit first in the file", [(0, 0.5, UNIT), (1, 0.5, FAR)], [(0, UNIT)], 1),
    ("tie, miss first in the file", [(1, 0.5, FAR), (0, 0.5, UNIT)], [(0, UNIT)], 1 / 2),
    ("dummy boxes", [(0, 0.9, (0, 0, 1, 1)), (1, 0.8, (0, 0, 1, 1))], [(1, (0, 0, 1, 1))], 1 / 2),
    ("box without area", [(0, 0.9, (3, 3, 3, 3)), (0, 0.8, UNIT)], [(0, UNIT), (0, (3, 3, 3, 3))], (1 / 2) / 2),
    ("no predictions", [], [(0, UNIT)], 0),
    ("no truth", [(0, 0.9, UNIT)], [], np.nan),
]  # fmt: skip


def arrays(predictions, truths):
    """Rows of tables as average_precision's five arguments."""
    rows, confidence, boxes = ([p[k] for p in predictions] for k in range(3))
    return (
        np.array(rows, dtype=int),
        np.array(confidence, dtype=float),
        np.array(boxes, dtype=float).reshape(-1, 4),
        np.array([t[0] for t in truths], dtype=int),
        np.array([t[1] for t in truths], dtype=float).reshape(-1, 4),
    )


@pytest.mark.parametrize(("predictions", "truths", "expected"), [c[1:] for c in BY_HAND], ids=[c[0] for c in BY_HAND])
def test_by_hand(predictions, truths, expected):
    assert average_precision(*arrays(predictions, truths)) == pytest.approx(expected, abs=1e-12, nan_ok=True)


def voc_loop(rows, confidence, boxes, truth_rows, truth_boxes):
    """VOCevaldet.m and VOCap.m written out box by box, with the competition's strict threshold and no added pixel."""
    claimed, hits = set(), []
    for i in sorted(range(len(rows)), key=lambda i: -confidence[i]):  # sorted() is stable
        best, highest = None, -np.inf
        for j in np.flatnonzero(truth_rows == rows[i]):
            width = min(boxes[i][2], truth_boxes[j][2]) - max(boxes[i][0], truth_boxes[j][0])
            height = min(boxes[i][3], truth_boxes[j][3]) - max(boxes[i][1], truth_boxes[j][1])
            if width > 0 and height > 0:
                areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (boxes[i], truth_boxes[j])]
                overlap = width * height / (sum(areas) - width * height)
                if overlap > highest:
                    best, highest = j, overlap
        hits.append(highest > 0.5 and best not in claimed)
        if hits[-1]:
            claimed.add(best)
    recall = np.concatenate([[0], np.cumsum(hits) / len(truth_rows), [1]])
    precision = np.concatenate([[0], np.cumsum(hits) / np.arange(1, len(hits) + 1), [0]])
    for k in range(len(precision) - 2, -1, -1):
        precision[k] = max(precision[k], precision[k + 1])
    return sum((recall[k] - recall[k - 1]) * precision[k] for k in range(1, len(recall)))


@pytest.mark.parametrize("seed", range(8))
def test_random_boxes_against_the_voc_loop(seed):
    """Small whole coordinates and coarse confidences: crowded truths, equal IoUs, IoUs of a half and many ties."""
    rng = np.random.default_rng(seed)
    images, n, m = 12, 400, 40
    corner, size = rng.integers(0, 6, (n + m, 2)), rng.integers(1, 6, (n + m, 2))
    boxes = np.hstack([corner, corner + size]).astype(float)
    confidence = rng.integers(0, 30, n) / 30
    found = rng.integers(0, images, n), confidence, boxes[:n], rng.integers(0, images, m), boxes[n:]
    assert average_precision(*found) == pytest.approx(voc_loop(*found), abs=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_random_boxes_against_pycocotools(seed, capsys):
    """Where COCO's rules and VOC's agree: truths of one image lie in cells of their own, so that no box can have an IoU
    above .5 with two of them, and COCO never falls back on a free box. Recall thresholds at k / truths make COCO's mean
    one over all points."""
    rng = np.random.default_rng(seed)
    truths, predictions = [], []
    for image in range(30):
        for cell in rng.permutation(4)[: rng.integers(0, 4)]:
            x, y = 100 * (cell % 2) + rng.uniform(0, 30), 100 * (cell // 2) + rng.uniform(0, 30)
            box = np.array([x, y, x + rng.uniform(20, 60), y + rng.uniform(20, 60)])
            truths.append((image, box))
            predictions += [(image, rng.random(), box + rng.normal(0, 5, 4)) for _ in range(3)]
        predictions += [(image, rng.random(), np.array([150, 0, 200, 60]) + rng.normal(0, 5, 4)) for _ in range(2)]

    def wide(box):
        return [box[0], box[1], box[2] - box[0], box[3] - box[1]]

    coco = COCO()
    coco.dataset = {
        "images": [{"id": image} for image in range(30)],
        "categories": [{"id": 1}],
        "annotations": [
            {"id": k, "image_id": i, "category_id": 1, "bbox": wide(b), "area": wide(b)[2] * wide(b)[3], "iscrowd": 0}
            for k, (i, b) in enumerate(truths, start=1)
        ],
    }
    coco.createIndex()
    found = coco.loadRes([{"image_id": i, "category_id": 1, "bbox": wide(b), "score": s} for i, s, b in predictions])
    evaluation = COCOeval(coco, found, "bbox")
    evaluation.params.iouThrs = np.array([0.5])
    evaluation.params.recThrs = np.arange(1, len(truths) + 1) / len(truths)
    evaluation.params.maxDets = [1000]
    evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
    evaluation.evaluate()
    evaluation.accumulate()
    expected = evaluation.eval["precision"].mean()
    assert 0.1 < expected < 0.9
    assert average_precision(*arrays(predictions, truths)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("study_probs", [1, 5, 10**9])
def test_falling_is_a_stable_sort(study_probs):
    values = np.random.default_rng(0).integers(0, study_probs, 1000) / study_probs
    assert (descending_order(values) == np.argsort(-values, kind="stable")).all()
    assert len(descending_order(values[:0])) == 0


# --- whole submissions --------------------------------------------------------------------------------------------


def truth_tables():
    """Two studies a study label; six images, three of them with boxes, four boxes in all."""
    study_label = np.repeat(np.eye(4, dtype=int), 2, axis=0)
    studies = pd.DataFrame(study_label, columns=STUDY_COLUMNS)
    studies.insert(0, "id", [f"{k}_study" for k in range(8)])
    label = (
        ["none 1 0 0 1 1"] * 3
        + ["opacity 1 10 10 50 90", "opacity 1 10 10 50 90 opacity 1 60 10 90 90"]
        + ["opacity 1 5.5 5.5 40 40"]
    )
    return pd.DataFrame({"id": [f"{k}_image" for k in range(6)], "label": label}), studies


def perfect_submission():
    images, studies = truth_tables()
    names = np.array(STUDY_LABELS)[studies[list(STUDY_COLUMNS)].to_numpy().argmax(axis=1)]
    strings = [f"{name} 1 0 0 1 1" for name in names] + list(images["label"])
    return pd.DataFrame({"id": [*studies["id"], *images["id"]], "PredictionString": strings})


def replaced(identifier, text):
    submission = perfect_submission()
    submission.loc[submission["id"] == identifier, "PredictionString"] = text
    return submission


def test_perfect_is_exactly_one():
    assert score(perfect_submission(), *truth_tables()) == dict.fromkeys([*CLASSES, "mean"], 1.0)


@pytest.mark.parametrize(
    ("identifier", "text", "changed"),
    [
        # the second negative of two is lost; "typical" gets a false positive, in file order before its own two hits
        ("1_study", "typical 1 0 0 1 1", {"negative": 1 / 2, "typical": 2 / 3}),
        ("1_study", "negative .9 0 0 1 1 typical .1 0 0 1 1", {}),  # ranked below its class's hits
        ("3_image", "none .4 0 0 1 1 opacity .4 10 10 50 90", {}),
        ("3_image", "none 1 0 0 1 1 opacity 1 50 50 60 60 opacity 1 10 10 50 90", {"opacity": 4 / 5}),
        ("4_image", "opacity 1 10 10 50 90", {"opacity": 3 / 4}),  # one of four boxes missed
        ("0_image", "opacity 1 0 0 1 1", {"none": 2 / 3, "opacity": 4 / 5}),
        ("0_image", "", {"none": 2 / 3}),
        ("0_study", "opacity 1 0 0 1 1", {"negative": 1 / 2, "opacity": 4 / 5}),  # a misplaced label hits nothing
    ],
)  # fmt: skip
def test_whole_submissions(identifier, text, changed):
    expected = {**dict.fromkeys(CLASSES, 1.0), **changed}
    expected["mean"] = sum(expected.values()) / 6
    assert score(replaced(identifier, text), *truth_tables()) == pytest.approx(expected)


def test_order_of_rows_matters_only_among_ties():
    submission = replaced("1_study", "negative .9 0 0 1 1 typical .3 0 0 1 1")
    assert score(submission[::-1], *truth_tables()) == score(submission, *truth_tables())


def test_subset_scores_what_is_there():
    """Without atypical studies and images with boxes, those classes have no truth: nan, and out of the mean."""
    submission = replaced("1_study", "typical 1 0 0 1 1").iloc[[0, 1, 2, 3, 4, 5, 8]]
    with pytest.raises(InputError, match=r"7 ids are missing from the submission .*--subset.* 1_image"):
        score(submission, *truth_tables())
    scores = score(submission, *truth_tables(), subset=True)
    expected = {
        "negative": 1 / 2,
        "typical": 2 / 3,
        "indeterminate": 1,
        "atypical": np.nan,
        "none": 1,
        "opacity": np.nan,
    }
    assert scores == pytest.approx({**expected, "mean": (1 / 2 + 2 / 3 + 1 + 1) / 4}, nan_ok=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: pd.concat([s, s[:1]]), "1 ids are repeated in the submission, the first is 0_study"),
        (lambda s: s.replace("2_image", "x_image"), "1 ids are submitted but not in the truth, the first is x_image"),
        (lambda s: s[:0], "14 ids are missing"),
        (lambda s: s.replace("opacity 1 10 10 50 90", "lesion 1 10 10 50 90"), "3_image: unknown label 'lesion'"),
        (lambda s: s.replace("opacity 1 10 10 50 90", "opacity 1 10 10 50"), "3_image: 5 values are no run"),
        (lambda s: s.replace("opacity 1 10 10 50 90", "opacity x 10 10 50 90"), "3_image: could not convert"),
        (lambda s: s.replace("opacity 1 10 10 50 90", "opacity nan 10 10 50 90"), "12 holds a number that is not fin"),
    ],
)  # fmt: skip
def test_refused(change, message):
    with pytest.raises(InputError, match=message):
        score(change(perfect_submission()), *truth_tables())


def test_truth_must_have_one_level():
    images, studies = truth_tables()
    studies.iloc[3, 1:] = 0
    with pytest.raises(InputError, match="exactly one study label"):
        score(perfect_submission(), images, studies)


def test_command(tmp_path, capsys):
    """Plain and gzipped files; the JSON has seven keys and null where the truth has nothing."""
    images, studies = truth_tables()
    images.to_csv(tmp_path / "images.csv.gz", index=False)
    studies.to_csv(tmp_path / "studies.csv", index=False)
    replaced("1_study", "typical 1 0 0 1 1")[:9].to_csv(tmp_path / "submission.csv", index=False)
    files = [str(tmp_path / name) for name in ("submission.csv", "images.csv.gz", "studies.csv", "scores.json")]
    arguments = ["score", files[0], "--images", files[1], "--studies", files[2]]
    assert main(arguments) == 2
    assert "5 ids are missing from the submission" in capsys.readouterr().err
    assert main([*arguments, "--subset", "--json", files[3]]) == 0
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert list(scores) == [*CLASSES, "mean"]
    assert scores["opacity"] is None
    assert scores["mean"] == pytest.approx((1 / 2 + 2 / 3 + 1 + 1 + 1) / 5)
    printed = capsys.readouterr().out
    assert "typical         0.6667" in printed
    assert "(the truth has no opacity: left out of the mean)" in printed
    assert main(["score", str(tmp_path / "none.csv"), *arguments[2:]]) == 2
    assert "cannot read" in capsys.readouterr().err
