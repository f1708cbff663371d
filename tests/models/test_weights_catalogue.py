"""The list of published weights, and the checksum of which their makers publish the first digits."""

import re
from dataclasses import replace

import pytest
import torch
import torchvision
from torchvision.models import resnet18
from torchvision.models.detection import fasterrcnn_resnet50_fpn

from siimcovid.apps.command_line import main
from siimcovid.core.errors import InputError
from siimcovid.core.files import sha256
from siimcovid.core.overrides import override
from siimcovid.core.presets import FULL, PRESETS
from siimcovid.kaggle.weights_dataset import kernel_parameters
from siimcovid.models import initial_weights, published_weights, weights_catalogue, weights_manifest
from siimcovid.models.backbone import build_backbone, normalise
from siimcovid.models.checkpoints import build_model, read_tensors
from siimcovid.models.torchvision_backbone import cut_into_stages
from siimcovid.models.weights_catalogue import PublishedFile, catalogue


def test_every_entry_says_what_a_person_needs():
    entries = catalogue()
    assert len(entries) > 70
    for entry in entries.values():
        assert entry.use
        assert entry.licence
        assert entry.source
        assert len(entry.mean) == len(entry.std)
        for file in entry.files:
            assert file.address.startswith("https://") or "package" in entry.source
            assert re.fullmatch(r"([0-9a-f]{8,})?", file.sha256)
            assert not file.sha256 or not file.address or file.sha256 in file.name
    wanted = "resnext101_32x8d resnet50 efficientnet_v2_s efficientnet_v2_m convnext_tiny mobilenet_v3_large yolov5l"
    assert {*wanted.split(), "xrv_densenet121_rsna", "chexnet_densenet121", "efficientnet_lite2"} <= set(entries)


@pytest.mark.parametrize("preset", ["full", "best"])
def test_a_kernel_with_a_presets_weights_runs_that_preset(preset, tmp_path):
    """The weights that a preset starts from, in one folder: none of them is another preset's."""
    stages = PRESETS[preset]
    for name in (stages.study.backbone, stages.yolo.architecture):
        (tmp_path / f"{name}.safetensors").write_bytes(b"")
        entry = catalogue()[name]
        weights_manifest.register(tmp_path / f"{name}.safetensors", stage=entry.stage, preset=entry.preset)
    assert kernel_parameters(tmp_path) == {"PRESET": preset, "MODE": "finetune"}


def test_the_list_is_printed(capsys):
    assert main(["weights", "list"]) == 0
    text = capsys.readouterr().out
    assert (
        "densenet121  backbone of any stage, ImageNet  [BSD-3-Clause]\n    31 MiB  SHA-256 a639ec97…  https://" in text
    )
    assert "xrv_densenet121_all" in text
    assert "CC-BY-NC-4.0" in text  # RegNet's SWAG weights


@pytest.mark.slow
def test_every_classifier_of_the_list_can_be_cut():
    small = ("_b0", "_small", "_400mf", "_x0_5", "0_5", "resnet34", "densenet169", "vgg13", "resnext50_32x4d", "v2_s")
    names = [
        entry.name for entry in catalogue().values() if entry.layout == "classifier" and entry.name.endswith(small)
    ]
    assert len(names) >= 10
    for name in names:
        stages, channels = cut_into_stages(torchvision.models.get_model(name, weights=None), name)
        assert len(stages) == len(channels) == 5


@pytest.fixture
def resnet18_file(tmp_path):
    """A file of torchvision's structure, with random values, and the digits that its makers would publish."""
    torch.manual_seed(0)
    path = tmp_path / "plain.pth"
    torch.save(resnet18().state_dict(), path)
    digits = sha256(path)[:8]
    return path.rename(tmp_path / f"resnet18-{digits}.pth")


def publish(monkeypatch, digits: str) -> None:
    """Let the catalogue say that these are the digits of ResNet-18's file."""
    entry = replace(
        catalogue()["resnet18"], files=(PublishedFile(f"https://models/resnet18-{digits}.pth", 45, digits, "CC0"),)
    )
    monkeypatch.setattr(weights_catalogue, "find", lambda name: entry)


def test_published_digits_are_checked(resnet18_file, tmp_path, monkeypatch):
    publish(monkeypatch, sha256(resnet18_file)[:8])
    path = published_weights.import_weights("resnet18", resnet18_file, tmp_path / "weights")
    entry = weights_manifest.read_manifest(tmp_path / "weights")["resnet18.safetensors"]
    assert entry["published_sha256"] == sha256(resnet18_file)
    assert entry["source"] == f"ImageNet weights of torchvision ({resnet18_file.name})"
    assert (entry["licence"], entry["weights"], entry["preset"]) == ("CC0", "resnet18", "")
    assert torch.equal(
        read_tensors(path)[0]["stages.4.1.conv2.weight"], torch.load(resnet18_file)["layer4.1.conv2.weight"]
    )
    with resnet18_file.open("r+b") as stream:
        stream.seek(-2000, 2)
        stream.write(b"bitrot")
    with pytest.raises(
        InputError, match=r"is damaged: its SHA-256 begins with [0-9a-f]{8}, that of the published one wi"
    ):
        published_weights.import_weights("resnet18", resnet18_file, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_file_saved_again_is_taken_as_of_unknown_origin(resnet18_file, tmp_path):
    again = resnet18_file.rename(tmp_path / "mine.pth")
    published_weights.import_weights("resnet18", again, tmp_path / "weights")
    entry = weights_manifest.read_manifest(tmp_path / "weights")["resnet18.safetensors"]
    assert entry["source"] == "ImageNet weights of torchvision, by a file whose SHA-256 is none that they publish"


def test_the_file_may_stand_behind_the_name(resnet18_file, tmp_path, capsys):
    assert main(["weights", "import", "resnet18", str(resnet18_file), "--out", str(tmp_path / "weights")]) == 0
    assert main(["weights", "verify", str(tmp_path / "weights")]) == 0
    assert "resnet18.safetensors  backbone  BSD-3-Clause" in capsys.readouterr().out
    assert main(["weights", "import", "resnet18", "--out", str(tmp_path / "weights")]) == 2
    assert "name the published file of resnet18 with --file" in capsys.readouterr().err


def test_efficientnet_v2_l_sees_its_own_scale(tmp_path, monkeypatch):
    """torchvision gives it images of mean .5 and deviation .5; a MobileNet of fewer weights stands for it here."""
    torch.manual_seed(0)
    network = torchvision.models.mobilenet_v3_small().eval()
    torch.save(network.state_dict(), tmp_path / "own.pth")
    assert catalogue()["efficientnet_v2_l"].mean == (0.5, 0.5, 0.5)
    entry = replace(catalogue()["mobilenet_v3_small"], mean=(0.5,) * 3, std=(0.5,) * 3)
    monkeypatch.setattr(weights_catalogue, "find", lambda name: entry)
    path = published_weights.import_weights("mobilenet_v3_small", tmp_path / "own.pth", tmp_path / "weights")
    backbone = build_backbone("mobilenet_v3_small").eval()
    backbone.load_state_dict(read_tensors(path)[0])
    images = torch.randint(0, 256, (2, 1, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        expected = network.features((images.float() / 255 - 0.5).expand(-1, 3, -1, -1) / 0.5)
        assert torch.allclose(backbone(normalise(images))[-1], expected, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_torchvisions_detector_starts_ours(tmp_path):
    """Its maps behind the pyramid, with its norms' epsilon of 0, are ours; only the boxes' classes stay random."""
    torch.manual_seed(0)
    theirs = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_var.uniform_(1e-4, 2e-4)
            torch.nn.init.uniform_(module.weight, 5e-3, 6e-3)
            module.eps = 0.0
    torch.save(theirs.state_dict(), tmp_path / "coco.pth")
    published_weights.import_weights("fasterrcnn_resnet50", tmp_path / "coco.pth", tmp_path / "weights")
    config = override(FULL.rcnn, {"backbone": "resnet50"})
    model = build_model("rcnn", config)
    origin = initial_weights.start("rcnn", config, model, tmp_path / "weights")
    assert origin["file"] == "fasterrcnn_resnet50.safetensors"
    assert {name.rpartition(".")[0] for name in origin["left"]} == {
        f"detector.roi_heads.box_predictor.{part}" for part in ("cls_score", "bbox_pred")
    }
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = theirs.eval().backbone(images).values()
        found = model.eval().detector.backbone(images).values()
    for ours, wanted in zip(found, expected, strict=True):
        assert torch.allclose(ours, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))
