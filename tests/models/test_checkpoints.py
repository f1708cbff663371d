"""A checkpoint rebuilds its model; a file that is none, or another model's, is refused in one sentence."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from siimcovid.core.errors import InputError
from siimcovid.core.overrides import to_dict
from siimcovid.core.presets import DEMO
from siimcovid.models import checkpoints


def test_checkpoint_rebuilds_its_model(tmp_path):
    config = replace(DEMO.study, hidden=7)
    model = checkpoints.build_model("study", config).eval()
    checkpoints.save(tmp_path / "study.safetensors", model, "study", config)
    stage, loaded_config, loaded = checkpoints.load(tmp_path / "study.safetensors")
    assert (stage, loaded_config) == ("study", config)
    images = torch.randint(0, 256, (1, 1, 64, 64), dtype=torch.uint8)
    assert torch.equal(loaded.predict(images), model.predict(images))


@pytest.mark.parametrize("content", [b"", b"no safetensors", None])
def test_checkpoint_that_is_none(tmp_path, content):
    path = tmp_path / "study.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"study\.safetensors"):
        checkpoints.load(path)


def saved(path: Path, **header: object) -> None:
    """A study checkpoint, its header's JSON changed."""
    model = checkpoints.build_model("study", DEMO.study)
    facts = {"stage": "study", "config": to_dict(DEMO.study), **header}
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, path, metadata={"siimcovid": json.dumps(facts)})


OTHER = to_dict(replace(DEMO.study, hidden=7))


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ({"config": OTHER}, "does not fit the model that its header describes .3 tensors have another shape"),
        ({"stage": "rcnn", "config": to_dict(DEMO.rcnn)}, "tensors are missing, the first"),
        (
            {"stage": "yolo", "config": to_dict(replace(DEMO.yolo, architecture="yolov9"))},
            "must be one of .*'yolov9'",
        ),
        ({"config": to_dict(replace(DEMO.study, backbone="vgg"))}, "unknown backbone 'vgg'"),
        ({"config": {**OTHER, "colour": 1}}, "cannot be rebuilt .no setting 'colour'"),
        ({"config": {"hidden": 7}}, "cannot be rebuilt .a StudyConfig is incomplete"),
        ({"config": None}, "cannot be rebuilt"),
        ({"stage": "segmentation"}, "is no trained stage of siimcovid"),
        ({"stage": ["study"]}, "is no trained stage of siimcovid"),
    ],
)
def test_a_checkpoint_of_another_model_is_one_sentence(tmp_path, header, words):
    path = tmp_path / "study.safetensors"
    saved(path, **header)
    with pytest.raises(InputError, match=rf"study\.safetensors .*{words}") as error:
        checkpoints.load(path)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("length", [1, 7, 8, 9, 100, 0.2, 0.9, 0.9999])
def test_a_checkpoint_cut_short_is_one_sentence(tmp_path, length):
    path = tmp_path / "study.safetensors"
    saved(path)
    content = path.read_bytes()
    path.write_bytes(content[: length if isinstance(length, int) else int(length * len(content))])
    with pytest.raises(InputError, match=r"study\.safetensors is no whole safetensors file .*copy it again"):
        checkpoints.load(path)


def test_a_folder_in_the_place_of_a_checkpoint(tmp_path):
    (tmp_path / "study.safetensors").mkdir()
    with pytest.raises(InputError, match=r"study\.safetensors is no whole safetensors file"):
        checkpoints.load(tmp_path / "study.safetensors")
