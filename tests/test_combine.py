"""What models say is combined: by hand, by formula, and where some of them say nothing."""

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, logit

from siimcovid import LEVELS
from siimcovid.ablation.arms import PLAIN
from siimcovid.checkpoint import family, member
from siimcovid.combine import Said, calibrated, combine, ensemble, none_evidence, side_evidence, sides
from siimcovid.errors import InputError
from siimcovid.fuse import COLUMNS, fuse
from siimcovid.presets import load_preset

LEFT, RIGHT = (0.1, 0.2, 0.4, 0.7), (0.6, 0.2, 0.9, 0.7)


def preset(**changes):
    return load_preset("small", PLAIN | {key.replace("__", "."): value for key, value in changes.items()})


def boxes(*rows):
    """Rows (image, voice, score, box)."""
    return pd.DataFrame([(image, voice, score, *box) for image, voice, score, box in rows], columns=COLUMNS)


@pytest.fixture
def said():
    """Two studies of two and one films: "a" has a box, "b" and "c" look clear; the study model says nothing of "c"."""
    films = pd.DataFrame({"image_id": ["a", "b", "c"], "study_id": ["s", "s", "t"]})
    found = boxes(
        ("a", "rcnn", 0.8, LEFT), ("a", "yolo", 0.6, LEFT), ("b", "rcnn", 0.2, RIGHT), ("c", "yolo", 0.1, RIGHT)
    )  # fmt: skip
    levels = pd.DataFrame([["a", "s", 0.2, 0.5, 0.2, 0.1, 0.3], ["b", "s", 0.4, 0.3, 0.2, 0.1, 0.7]])
    levels.columns = ["image_id", "study_id", *LEVELS, "none"]
    return Said(films, found, {"rcnn": ["a", "b", "c"], "yolo": ["a", "b", "c"]}, levels)


@pytest.mark.parametrize(
    ("voice", "expected"),
    [("rcnn", "rcnn"), ("rcnn_flip", "rcnn"), ("yolo.1", "yolo"), ("yolo.12_flip", "yolo"), ("study.2", "study")],
)
def test_family(voice, expected):
    assert family(voice) == expected


def test_a_member_belongs_to_its_stage():
    assert [member("yolo", number) for number in range(3)] == ["yolo", "yolo.1", "yolo.2"]
    assert {family(member("study", number)) for number in range(12)} == {"study"}


def test_nothing_crosses_in_the_plain_preset(said):
    answer = combine(said, preset())
    pd.testing.assert_frame_equal(answer.detections, fuse(said.detections, ["rcnn", "yolo"], nms_iou=0.5))
    assert answer.none.to_dict() == pytest.approx({"a": 0.3, "b": 0.9, "c": 0.95})  # 1 - mean score of both
    assert answer.levels["study_id"].tolist() == ["s"]
    assert answer.levels[list(LEVELS)].to_numpy()[0] == pytest.approx([0.3, 0.4, 0.2, 0.1])


def test_a_film_is_fused_of_those_who_looked(said):
    """Silence counts against the other's boxes only of a detector that looked."""
    some = Said(said.films, said.detections, {"rcnn": ["a", "b", "c"], "yolo": ["a"]})
    scores = ensemble(some, preset().fusion).set_index("image_id")["score"]
    assert scores["b"] == pytest.approx(0.2)
    assert scores["a"] == pytest.approx(0.7)
    assert "c" not in scores  # YOLO's box there is of a film that it is said not to have seen
    nobody = Said(said.films, said.detections.iloc[:0], {})
    assert ensemble(nobody, preset().fusion).empty
    assert combine(nobody, preset()).none.empty


def test_members_and_mirrored_films_have_their_detectors_weight(said):
    found = boxes(("a", "rcnn", 0.8, LEFT), ("a", "rcnn.1_flip", 0.6, LEFT), ("a", "yolo", 0.4, LEFT))
    more = Said(said.films, found, {"rcnn": ["a"], "rcnn.1_flip": ["a"], "yolo": ["a"], "retinanet": ["a"]})
    score = ensemble(more, preset(fusion__weights=[3, 1]).fusion)["score"].item()
    # the mean of the weighted scores, times voices over the sum of their weights (report, equations 3 and 6)
    assert score == pytest.approx((3 * 0.8 + 3 * 0.6 + 0.4) / 3 * 3 / (3 + 3 + 1))


def test_calibration_is_by_detector(said):
    found = calibrated(said.detections, preset(fusion__calibration=[1, -1, 2, 0.5]).fusion)
    expected = [expit(logit(0.8) - 1), expit(2 * logit(0.6) + 0.5), expit(logit(0.2) - 1), expit(2 * logit(0.1) + 0.5)]
    assert found["score"].tolist() == pytest.approx(expected)
    assert calibrated(said.detections, preset().fusion) is said.detections


def test_none_is_learned_of_all(said):
    numbers = [0.5, 2.0, 1.0, 0.25, 0.125]
    answer = combine(said, preset(crosstalk__none=numbers))
    evidence = [logit(1 - 0.8), logit(1 - 0.6), logit(0.2), logit(0.3)]
    assert answer.none["a"] == pytest.approx(expit(0.5 + np.dot(numbers[1:], evidence)))
    assert answer.none["c"] == pytest.approx(0.95)  # the study model said nothing of it
    without = combine(said, preset(crosstalk__none=[0.5, 2.0, 1.0, 0, 0]))
    assert without.none["c"] == pytest.approx(expit(0.5 + 2 * logit(1 - 1e-4) + logit(0.9)))


def test_a_detector_that_did_not_look_is_taken_to_agree(said):
    some = Said(said.films, said.detections, {"rcnn": ["a", "b", "c"], "yolo": ["a"]}, said.levels)
    evidence = none_evidence(some, preset().fusion)
    assert evidence.loc["b", "yolo"] == evidence.loc["b", "rcnn"] == pytest.approx(logit(0.8))
    assert np.isnan(evidence.loc["c", "negative"])


def test_boxes_are_rescored(said):
    answer = combine(said, preset(crosstalk__opacity_none=0.5, crosstalk__opacity_negative=2))
    plain = combine(said, preset())
    expected = {"a": 0.7 * 0.7**0.5 * 0.8**2, "b": 0.1 * 0.1**0.5 * 0.6**2, "c": 0.05 * 0.05**0.5}
    assert answer.detections.set_index("image_id")["score"].to_dict() == pytest.approx(expected)
    assert answer.none.to_dict() == plain.none.to_dict()


#: Intercept and weights of the surer side, the other side and `none`, for none, one and both sides.
SIDES = [[0.5, -1.0, 0.0, 1.0], [0.0, 0.5, -0.5, 0.0], [-0.5, 0.5, 1.0, -1.0]]
#: How much more often none, one and both sides are affected: of negative, typical, indeterminate and atypical studies.
LEVEL_SIDES = [[3.0, 0.1, 0.1], [0.1, 0.2, 2.0], [0.1, 3.0, 0.7], [0.6, 2.0, 0.4]]


def heard(**changes):
    numbers = {"crosstalk__sides": np.ravel(SIDES).tolist(), "crosstalk__level_sides": np.ravel(LEVEL_SIDES).tolist()}
    return preset(**numbers | changes)


def test_sides_are_the_halves_of_the_film(said):
    found = boxes(("a", "ensemble", 0.2, LEFT), ("a", "ensemble", 0.7, RIGHT), ("a", "ensemble", 0.4, RIGHT),
                  ("b", "ensemble", 0.3, LEFT))  # fmt: skip
    evidence = side_evidence(found, pd.Series({"a": 0.3, "b": 0.9, "c": 0.8}))
    expected = [[0.7, 0.2, 0.3], [0.3, 1e-4, 0.9], [1e-4, 1e-4, 0.8]]
    assert expit(evidence.to_numpy()) == pytest.approx(np.array(expected))
    for numbers in (SIDES, [[0] * 4] * 3):
        probabilities = sides(
            found, pd.Series({"a": 0.3}), heard(crosstalk__sides=np.ravel(numbers).tolist()).crosstalk
        )
        odds = np.exp([row[0] + np.dot(row[1:], logit([0.7, 0.2, 0.3])) for row in numbers])
        assert probabilities.to_numpy()[0] == pytest.approx(odds / odds.sum())


def test_levels_hear_how_many_sides_are_affected(said):
    answer = combine(said, heard(crosstalk__level_power=0.5))
    plain = combine(said, preset())
    likelihood = sides(plain.detections, plain.none, heard().crosstalk).loc[["a", "b"]].mean() @ np.array(LEVEL_SIDES).T
    expected = np.array([0.3, 0.4, 0.2, 0.1]) ** 0.5 * likelihood
    assert answer.levels[list(LEVELS)].to_numpy()[0] == pytest.approx(expected / expected.sum())
    assert answer.none.to_dict() == plain.none.to_dict()
    silent = Said(said.films, said.detections.iloc[:0], {}, said.levels)
    assert combine(silent, heard()).levels.equals(plain.levels)


def test_a_study_that_no_detector_looked_at_keeps_its_levels(said):
    levels = pd.concat([said.levels, said.levels[:1].assign(image_id="c", study_id="t")], ignore_index=True)
    some = Said(said.films, said.detections, {"rcnn": ["a", "b"], "yolo": ["a", "b"]}, levels)
    answer = combine(some, heard()).levels.set_index("study_id")
    assert answer.loc["t"].tolist() == pytest.approx([0.2, 0.5, 0.2, 0.1])
    assert answer.loc["s"].tolist() != pytest.approx([0.3, 0.4, 0.2, 0.1])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"fusion.weights": [1]}, "fusion.weights has 1 numbers; it needs 1 for each of the detectors rcnn, yolo"),
        ({"crosstalk.sides": [1.0] * 11}, "crosstalk.sides has 11 numbers; it needs an intercept"),
        ({"crosstalk.sides": [1.0] * 12}, "crosstalk.level_sides has 0 numbers; it needs three for each level"),
        ({"fusion.calibration": [1, 0, 1]}, "fusion.calibration has 3 numbers; it needs 2 for each of the detectors"),
        (
            {"crosstalk.none": [1, 2]},
            "crosstalk.none has 2 numbers; it needs an intercept and a weight for each of rcnn",
        ),
    ],
)
def test_numbers_that_do_not_fit_are_named(said, changes, words):
    with pytest.raises(InputError, match=words):
        combine(said, load_preset("small", PLAIN | changes))
