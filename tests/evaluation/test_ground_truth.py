"""The held-back answers beside a competition folder."""

import pytest

from siimcovid.core.errors import InputError
from siimcovid.evaluation.ground_truth import find_ground_truth, read_ground_truth

IMAGES = """id,boxes,label,StudyInstanceUID
a_image,"[{'x': 10, 'y': 20, 'width': 30, 'height': 40}]",opacity 1 10 20 40 60,s
b_image,,none 1 0 0 1 1,t
"""
STUDIES = """id,Negative for Pneumonia,Typical Appearance,Indeterminate Appearance,Atypical Appearance
s_study,0,0,0,1
t_study,1,0,0,0
"""


@pytest.fixture
def competition(tmp_path):
    truth = tmp_path / "images.truth"
    truth.mkdir()
    (truth / "test_image_level.csv").write_text(IMAGES)
    (truth / "test_study_level.csv").write_text(STUDIES)
    return tmp_path / "images"


def test_answers_lie_beside_the_competition(competition):
    assert find_ground_truth(competition) == competition.with_name("images.truth")
    assert find_ground_truth(competition.with_name("others")) is None
    assert find_ground_truth("/") is None


def test_answers_as_labels_and_fractions(competition):
    answers = read_ground_truth(find_ground_truth(competition))
    assert answers.study_labels() == {"s": "atypical", "t": "negative"}
    # an image of 200 rows and 100 columns; b is of unknown size, c has no answer
    assert answers.boxes({"a": (200, 100), "b": (0, 0), "c": (9, 9)}) == {"a": [[0.1, 0.1, 0.4, 0.3]]}
    assert answers.boxes({"b": (10, 10)}) == {"b": []}


def test_synthetic_images_are_known_by_their_parameters(competition):
    truth = find_ground_truth(competition)
    assert not read_ground_truth(truth).synthetic
    (truth / "synthetic.json").write_text("{}")
    assert read_ground_truth(truth).synthetic


def test_half_the_answers_are_refused(competition):
    truth = find_ground_truth(competition)
    (truth / "test_study_level.csv").unlink()
    with pytest.raises(InputError, match=r"images\.truth holds no answers"):
        read_ground_truth(truth)
