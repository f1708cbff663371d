"""From fractions to pixels and strings: rows by hand, whole files, and the competition's own truth as a submission."""

import ast

import numpy as np
import pandas as pd
import pytest

from siimcovid.core.errors import InputError
from siimcovid.core.labels import CLASSES, STUDY_COLUMNS, STUDY_LABELS
from siimcovid.evaluation.mean_average_precision import score
from siimcovid.evaluation.submission_csv import (
    Priors,
    image_row,
    parse_predictions,
    prior_submission,
    read_table,
    study_row,
    to_pixels,
    train_priors,
    write_submission,
)
from siimcovid.evaluation.submission_validator import validate

PRIORS = Priors(dict(zip(STUDY_LABELS, (0.25, 0.5, 0.125, 0.125), strict=True)), none=0.375)
PRIOR_STUDY = (
    "negative 0.25000000 0 0 1 1 typical 0.50000000 0 0 1 1 "
    "indeterminate 0.12500000 0 0 1 1 atypical 0.12500000 0 0 1 1"
)


def test_study_row():
    assert study_row([0.5, 0.25, 0.2, 0.05]) == (
        "negative 0.50000000 0 0 1 1 typical 0.25000000 0 0 1 1 "
        "indeterminate 0.20000000 0 0 1 1 atypical 0.05000000 0 0 1 1"
    )


def test_image_row():
    """Fractions of x are multiplied by columns, of y by rows; the order of the boxes is kept."""
    boxes = np.array([[0.75, 0.1, 0.25, 0.5, 1.0], [0.001, 0.0, 0.0, 1 / 3, 0.5]])
    assert image_row(0.125, boxes, (200, 300)) == (
        "none 0.12500000 0 0 1 1 opacity 0.75000000 30.00 50.00 150.00 200.00 "
        "opacity 0.00100000 0.00 0.00 100.00 100.00"
    )
    assert image_row(1.0, np.empty((0, 5)), (200, 300)) == "none 1.00000000 0 0 1 1"


@pytest.mark.parametrize(
    ("fractions", "pixels"),
    [
        ([0, 0, 1, 1], [0, 0, 300, 200]),
        ([-0.5, -0.1, 1.5, 1.1], [0, 0, 300, 200]),  # clipped
        ([0.5, 0.5, 0.5, 0.5], [150, 100, 150.01, 100.01]),  # without area
        ([0.5, 0.5, 0.50001, 0.50001], [150, 100, 150.01, 100.01]),  # thinner than the file's decimals
        ([1, 1, 1, 1], [299.99, 199.99, 300, 200]),  # at the far corner
        ([1.2, 1.2, 1.3, 1.3], [299.99, 199.99, 300, 200]),  # outside
        ([0.6, 0.6, 0.5, 0.5], [180, 120, 180.01, 120.01]),  # inverted
    ],
)
def test_pixels_lie_in_the_image_and_have_an_area(fractions, pixels):
    assert to_pixels(np.array([[0.5, *fractions]]), (200, 300)).tolist() == [[0.5, *pixels]]


def tables():
    study_probs = pd.DataFrame(
        [["s1", 0.1, 0.2, 0.3, 0.4], ["s2", np.nan, 0.2, 0.3, 0.5], ["elsewhere", 1, 0, 0, 0]],
        columns=["study_id", *STUDY_LABELS],
    )
    none = pd.Series({"i1": 0.25, "i2": np.nan, "i3": 0.5})
    detections = pd.DataFrame(
        [
            ["i1", "ensemble", 0.5, 0.5, 0.5, 1.0, 1.0],
            ["i1", "ensemble", 0.75, 0.0, 0.0, 0.5, 0.5],
            ["i1", "ensemble", np.nan, 0.0, 0.0, 0.5, 0.5],
            ["i3", "ensemble", 0.5, 0.0, 0.0, 0.5, 0.5],
            ["i2", "ensemble", 0.00002, 0.0, 0.0, 0.5, 0.5],
        ],
        columns=["image_id", "model", "score", "x1", "y1", "x2", "y2"],
    )
    images = pd.DataFrame({"image_id": ["i1", "i2", "i3"], "rows": [100, 1000, 0], "columns": [200, 2000, 0]})
    return study_probs, none, detections, images


def sample_of(*ids):
    return pd.DataFrame({"id": ids, "PredictionString": "none 1 0 0 1 1"})


def test_write_answers_every_id_of_the_sample(tmp_path):
    """A study or image without a finite prediction gets the priors; an image of unknown size gets no boxes."""
    sample = sample_of("i3_image", "s1_study", "s2_study", "s3_study", "i1_image", "i2_image", "i4_image")
    by_priors = write_submission(sample, *tables(), tmp_path / "submission.csv", PRIORS)
    assert by_priors == ["s2_study", "s3_study", "i2_image", "i4_image"]
    assert (tmp_path / "submission.csv").read_bytes().decode().split("\n") == [
        "id,PredictionString",
        "i3_image,none 0.50000000 0 0 1 1",
        f"s1_study,{study_row([0.1, 0.2, 0.3, 0.4])}",
        f"s2_study,{PRIOR_STUDY}",
        f"s3_study,{PRIOR_STUDY}",
        "i1_image,none 0.25000000 0 0 1 1"
        " opacity 0.75000000 0.00 0.00 100.00 50.00 opacity 0.50000000 100.00 50.00 200.00 100.00",
        "i2_image,none 0.37500000 0 0 1 1 opacity 0.00002000 0.00 0.00 1000.00 500.00",
        "i4_image,none 0.37500000 0 0 1 1",
        "",
    ]


def test_write_refuses_an_id_of_neither_kind(tmp_path):
    with pytest.raises(InputError, match="'s1'"):
        write_submission(sample_of("s1"), *tables(), tmp_path / "submission.csv", PRIORS)
    assert list(tmp_path.iterdir()) == []


def test_header_is_the_samples(tmp_path):
    sample = sample_of("s1_study").rename(columns={"PredictionString": "Predictions"})
    write_submission(sample, *tables(), tmp_path / "submission.csv", PRIORS)
    assert (tmp_path / "submission.csv").read_text().startswith("id,Predictions\n")


def test_priors(tmp_path):
    """Study labels are counted over studies (a has two images), boxes over images, and test images do not count."""
    images = pd.DataFrame(
        [
            ["train", "a", "typical", [[0, 0, 1, 1]]],
            ["train", "a", "typical", []],
            ["train", "b", "negative", []],
            ["train", "c", "negative", []],
            ["train", "d", "atypical", []],
            ["test", "e", None, []],
        ],
        columns=["split", "study_id", "study_label", "boxes"],
    )
    priors = train_priors(images)
    assert priors == Priors({"negative": 0.5, "typical": 0.25, "indeterminate": 0.0, "atypical": 0.25}, none=0.8)
    prior_submission(sample_of("a_study", "i_image"), tmp_path / "submission.csv", PRIORS)
    assert (tmp_path / "submission.csv").read_text().splitlines()[1:] == [
        f"a_study,{PRIOR_STUDY}",
        "i_image,none 0.37500000 0 0 1 1",
    ]
    with pytest.raises(InputError, match="no train images"):
        train_priors(images[images["split"] == "test"])


def test_parsing_reverses_writing():
    rng = np.random.default_rng(0)
    boxes = np.hstack([rng.random((50, 1)), rng.random((50, 2)) / 2, 0.5 + rng.random((50, 2)) / 2])
    text = image_row(0.25, boxes, (3000, 2500))
    found = parse_predictions(["s", "i"], [study_row([0.1, 0.2, 0.3, 0.4]), text])
    assert found.row.tolist() == [0] * 4 + [1] * 51
    assert [CLASSES[code] for code in found.label] == [*STUDY_LABELS, "none"] + ["opacity"] * 50
    opacity = found.of("opacity")
    assert np.abs(opacity.confidence - boxes[:, 0]).max() <= 0.5e-8 * 1.01
    assert np.abs(opacity.xyxy - boxes[:, 1:] * [2500, 3000, 2500, 3000]).max() <= 0.005 * 1.01
    assert (found.xyxy[:5] == [0, 0, 1, 1]).all()


def test_read_table(tmp_path):
    (tmp_path / "t.csv").write_text("id,other\n007,\n")
    assert read_table(tmp_path / "t.csv", ["id"]).to_numpy().tolist() == [["007", ""]]
    with pytest.raises(InputError, match="no column PredictionString; it has id, other"):
        read_table(tmp_path / "t.csv", ["id", "PredictionString"])
    (tmp_path / "e.csv").write_text("")
    with pytest.raises(InputError, match="cannot read"):
        read_table(tmp_path / "e.csv", [])


def test_the_competitions_truth_is_a_perfect_submission(real, tmp_path):
    """Written from fractions, it scores exactly 1 in each class and validates. dim0 of the sizes is rows."""
    labels = real / "labels"
    images, studies = (pd.read_csv(labels / f"train_{kind}_level.csv.gz") for kind in ("image", "study"))
    sizes = pd.read_csv(labels / "image_sizes_train_test_meta.csv.gz")
    sizes = sizes.rename(columns={"dim0": "rows", "dim1": "columns"})
    size_of = dict(zip(sizes["image_id"], zip(sizes["rows"], sizes["columns"], strict=True), strict=True))
    names = images["id"].str.removesuffix("_image")
    detections = []
    for name, boxes in zip(names, images["boxes"], strict=True):
        rows, columns = size_of[name]
        for b in ast.literal_eval(boxes) if isinstance(boxes, str) else ():
            corners = b["x"], b["y"], b["x"] + b["width"], b["y"] + b["height"]
            detections.append((name, 1.0, *(c / side for c, side in zip(corners, (columns, rows) * 2, strict=True))))
    detections = pd.DataFrame(detections, columns=["image_id", "score", "x1", "y1", "x2", "y2"])
    study_probs = studies.rename(columns=dict(zip(STUDY_COLUMNS, STUDY_LABELS, strict=True)))
    study_probs["study_id"] = studies["id"].str.removesuffix("_study")
    none = pd.Series((images["boxes"].isna()).to_numpy(dtype=float), index=names)
    sample = sample_of(*studies["id"], *images["id"])
    path = tmp_path / "submission.csv"

    assert write_submission(sample, study_probs, none, detections, sizes, path, PRIORS) == []
    submission = read_table(path, ["id", "PredictionString"])
    assert score(submission, images, studies) == dict.fromkeys([*CLASSES, "mean"], 1.0)
    sample.to_csv(tmp_path / "sample.csv", index=False)
    verdict = validate(path, tmp_path / "sample.csv", labels / "image_sizes_train_test_meta.csv.gz")
    assert verdict.faults == []
    assert len(verdict.holdings.confidences["opacity"]) == 7853

    # So is the truth's own label column, one box of which begins 3.6 pixels before the left edge.
    own = dict(zip(images["id"], images["label"], strict=True))
    own = submission.assign(PredictionString=submission["id"].map(own).fillna(submission["PredictionString"]))
    assert score(own, images, studies)["mean"] == 1.0
    own.to_csv(path, index=False)
    assert validate(path, tmp_path / "sample.csv", labels / "image_sizes_train_test_meta.csv.gz").faults == []
