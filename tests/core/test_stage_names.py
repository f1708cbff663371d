"""Names of models: a stage, a member of its fold ensemble, and its prediction of mirrored images."""

import pytest

from siimcovid.core.stage_names import member, stage_of


@pytest.mark.parametrize(
    ("model_name", "expected"),
    [("rcnn", "rcnn"), ("rcnn_hflip", "rcnn"), ("yolo.1", "yolo"), ("yolo.12_hflip", "yolo"), ("study.2", "study")],
)
def test_family(model_name, expected):
    assert stage_of(model_name) == expected


def test_a_member_belongs_to_its_stage():
    assert [member("yolo", number) for number in range(3)] == ["yolo", "yolo.1", "yolo.2"]
    assert {stage_of(member("study", number)) for number in range(12)} == {"study"}
