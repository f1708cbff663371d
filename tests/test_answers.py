"""The held-back answers beside a competition folder."""

import pytest

from siimcovid.answers import find_answers, read_answers
from siimcovid.errors import InputError

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
    truth = tmp_path / "films.truth"
    truth.mkdir()
    (truth / "test_image_level.csv").write_text(IMAGES)
    (truth / "test_study_level.csv").write_text(STUDIES)
    return tmp_path / "films"


def test_answers_lie_beside_the_competition(competition):
    assert find_answers(competition) == competition.with_name("films.truth")
    assert find_answers(competition.with_name("others")) is None
    assert find_answers("/") is None


def test_answers_as_levels_and_fractions(competition):
    answers = read_answers(find_answers(competition))
    assert answers.levels() == {"s": "atypical", "t": "negative"}
    # a film of 200 rows and 100 columns; b is of unknown size, c has no answer
    assert answers.boxes({"a": (200, 100), "b": (0, 0), "c": (9, 9)}) == {"a": [[0.1, 0.1, 0.4, 0.3]]}
    assert answers.boxes({"b": (10, 10)}) == {"b": []}


def test_synthetic_films_are_known_by_their_parameters(competition):
    truth = find_answers(competition)
    assert not read_answers(truth).synthetic
    (truth / "phantom.json").write_text("{}")
    assert read_answers(truth).synthetic


def test_half_the_answers_are_refused(competition):
    truth = find_answers(competition)
    (truth / "test_study_level.csv").unlink()
    with pytest.raises(InputError, match=r"films\.truth holds no answers"):
        read_answers(truth)
