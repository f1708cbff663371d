"""The weights that a stage starts from: its own, a trained backbone's, or published ones."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from siimcovid.core import files
from siimcovid.core.configuration import RcnnConfig
from siimcovid.core.errors import InputError
from siimcovid.core.presets import DEMO, FULL, load_preset
from siimcovid.models import checkpoints, initial_weights, published_weights, weights_manifest


@pytest.mark.parametrize(
    ("stage", "left"),
    [("rcnn", "rpn"), ("yolo", "model.model.24"), ("retinanet", "detector.head"), ("study", "head")],
)
def test_start_takes_the_backbone_and_says_what_it_left(imagenet, stage, left):
    config = getattr(DEMO, stage)
    model = checkpoints.build_model(stage, config)
    origin = initial_weights.start(stage, config, model, imagenet)
    assert origin["file"] == "efficientnet_lite0.safetensors"
    assert any(left in name for name in origin["left"])
    assert not any("stages" in name for name in origin["left"])
    stem = checkpoints.read_tensors(imagenet / origin["file"])[0]["stages.0.0.weight"]
    assert sum(torch.equal(p, stem) for p in model.parameters() if p.shape == stem.shape) == 1


def test_start_prefers_the_stage_trained_before(imagenet, tmp_path):
    for name in ("manifest.json", "efficientnet_lite0.safetensors"):
        (tmp_path / name).write_bytes((imagenet / name).read_bytes())
    trained = checkpoints.build_model("study", DEMO.study)
    checkpoints.save(tmp_path / "study.safetensors", trained, "study", DEMO.study)
    entry = {"architecture": "efficientnet_lite0", "source": "x", "licence": "x", "preset": "x"}
    weights_manifest.register(tmp_path / "study.safetensors", stage="study", **entry)
    model = checkpoints.build_model("study", DEMO.study)
    origin = initial_weights.start("study", DEMO.study, model, tmp_path)
    assert (origin["file"], origin["left"]) == ("study.safetensors", [])
    assert torch.equal(model.head[0].weight, trained.head[0].weight)


def test_start_without_weights_says_how_to_get_them(tmp_path):
    (tmp_path / "manifest.json").write_text(json.dumps({}))
    with pytest.raises(InputError, match="siimcovid weights import resnext101_32x8d"):
        initial_weights.start("rcnn", FULL.rcnn, nn.Linear(1, 1), tmp_path)


def test_a_trained_backbone_goes_before_the_published_one(imagenet, tmp_path):
    """Every tensor of the backbone is taken from the stage that trained it, none of its head."""
    torch.manual_seed(0)
    trained = checkpoints.build_model("backbone", DEMO.backbone)
    checkpoints.save(tmp_path / "backbone.safetensors", trained, "backbone", DEMO.backbone)
    preset = load_preset("demo")
    weights_manifest.register_trained(tmp_path / "backbone.safetensors", "backbone", preset, "nothing")
    published_weights.import_weights("efficientnet_lite0", None, tmp_path)
    for stage in ("rcnn", "yolo", "retinanet", "study"):
        config = getattr(preset, stage)
        model = checkpoints.build_model(stage, config)
        origin = initial_weights.start(stage, config, model, tmp_path)
        assert origin["file"] == "backbone.safetensors"
        own, theirs = model.state_dict(), trained.state_dict()
        expected = {name: value for name, value in theirs.items() if name.startswith("backbone.stages")}
        taken = [name for name in own if name not in origin["left"]]
        assert len(taken) == origin["taken"] > 200
        for name in taken:
            inner = "backbone.stages" + name.split("stages", 1)[1]
            assert torch.equal(own[name], expected[inner])


@pytest.mark.parametrize("stage", checkpoints.STAGES)
def test_a_model_of_another_network_is_no_start(stage, tmp_path):
    """Few of its tensors would fit, and training would begin from random ones."""
    torch.manual_seed(0)
    config = getattr(DEMO, stage)
    path, second = tmp_path / f"{stage}.safetensors", replace(config, backbone="shufflenet_v2_x0_5")
    checkpoints.save(path, checkpoints.build_model(stage, config), stage, config, {"finished": True})
    weights_manifest.register_trained(path, stage, load_preset("demo"), "nothing")
    assert initial_weights.start_file(stage, config, tmp_path)[0] == path
    with pytest.raises(InputError, match="import shufflenet_v2_x0_5"):
        initial_weights.start_file(stage, second, tmp_path)


def test_a_detector_may_start_from_the_study_models_backbone(imagenet, tmp_path):
    """Once that is trained to its end, in the folder that the detector is trained into."""
    torch.manual_seed(0)
    study = checkpoints.build_model("study", DEMO.study)
    path, config = tmp_path / "study.safetensors", replace(DEMO.rcnn, study_backbone=True)

    def start_of(config: RcnnConfig) -> str:
        return initial_weights.start("rcnn", config, checkpoints.build_model("rcnn", config), imagenet, tmp_path)[
            "file"
        ]

    assert start_of(config) == "efficientnet_lite0.safetensors"
    checkpoints.save(path, study, "study", DEMO.study, {"finished": False})
    weights_manifest.register_trained(path, "study", load_preset("demo"), "nothing")
    assert start_of(config) == "efficientnet_lite0.safetensors"
    checkpoints.save(path, study, "study", DEMO.study, {"finished": True})
    assert start_of(DEMO.rcnn) == "efficientnet_lite0.safetensors"
    assert start_of(config) == "study.safetensors"
    model = checkpoints.build_model("rcnn", config)
    origin = initial_weights.start("rcnn", config, model, imagenet, tmp_path)
    own, theirs = model.state_dict(), study.state_dict()
    taken = [name for name in own if name not in origin["left"]]
    assert len(taken) == origin["taken"] > 200
    assert all(torch.equal(own[name], theirs["backbone.stages" + name.split("stages", 1)[1]]) for name in taken)
    other = replace(config, backbone="resnext101_32x8d")
    with pytest.raises(InputError, match="resnext101_32x8d"):
        initial_weights.start("rcnn", other, model, imagenet, tmp_path)


def test_a_backbone_of_another_architecture_is_passed_over(imagenet):
    entry = {"stage": "backbone", "architecture": "resnext101_32x8d"}
    manifest = weights_manifest.read_manifest(imagenet) | {"backbone.safetensors": entry | {"sha256": "0"}}
    files.write_json(imagenet / "manifest.json", manifest)
    model = checkpoints.build_model("study", DEMO.study)
    assert initial_weights.start("study", DEMO.study, model, imagenet)["file"] == "efficientnet_lite0.safetensors"
