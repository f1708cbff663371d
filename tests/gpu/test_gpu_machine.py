"""The device that is chosen, and what happens where its memory does not suffice."""

import json

import pytest
import torch

from siimcovid.core import device as core_device
from siimcovid.core.memory_errors import is_out_of_memory
from siimcovid.core.presets import DEMO
from siimcovid.data.image_memory import ImageMemory
from siimcovid.inference import predictor
from siimcovid.kaggle.smoke_test import describe_machine, machine_lines
from siimcovid.kernel import predict_test_images, stage_models, train_models
from siimcovid.kernel.notebook_parameters import Parameters
from siimcovid.kernel.run import Run
from siimcovid.kernel.time_budget import TimeBudget
from support.tiny_stages import eight_images

#: Bytes that no machine has, and no address space of 48 bits.
TOO_MUCH = 1 << 50


def test_the_device_that_works_is_chosen(device):
    assert core_device.choose_device().type == device.type
    assert (core_device.gpu_count() > 0) == (device.type == "cuda")
    assert core_device.gpu_fault() is None
    assert core_device.launched_as().device.type == device.type
    if device.type == "cuda":
        core_device.try_gpu(0)
        machine = describe_machine()
        assert machine["device"] == "cuda:0"
        assert any(line.endswith(": works") for line in machine_lines(json.loads(json.dumps(machine))))


def test_a_lack_of_memory_is_known_and_leaves_the_device_usable(device):
    with pytest.raises(RuntimeError) as caught:
        torch.empty(TOO_MUCH, dtype=torch.uint8, device=device)
    assert is_out_of_memory(caught.value)
    predict_test_images.free_memory()
    assert torch.ones(2, device=device).sum().item() == 2


class Hungry(torch.nn.Module):
    """Finds a box in the middle of each image, and takes more memory than there is for more than two of them."""

    def predict(self, images):
        if len(images) > 2:
            torch.empty(TOO_MUCH, dtype=torch.uint8, device=images.device)
        box = torch.tensor([[0.25, 0.25, 0.75, 0.75]], device=images.device)
        return [(box, torch.ones(1, device=images.device))] * len(images)


def test_prediction_halves_its_batch_until_it_fits(device, tmp_path, monkeypatch):
    cache, images = eight_images(tmp_path)
    run = Run(Parameters(tmp_path, preset=DEMO), TimeBudget(9.0, 0.0, lambda: 0.0))
    monkeypatch.setattr(Run, "test", images)
    monkeypatch.setattr(Run, "cache", cache)
    batches, predict = [], predictor.predict_images

    def predict_images(stage, config, *arguments, **options):
        batches.append(config.infer_batch)
        return predict(stage, config, *arguments, **options)

    monkeypatch.setattr(predictor, "predict_images", predict_images)
    config = predict_test_images.replace(DEMO.rcnn, infer_batch=8, infer_size=64)
    found = predict_test_images.in_smaller_batches(
        run, "detect", "rcnn", config, Hungry(), False, None, images, ImageMemory(0)
    )
    assert batches == [8, 4, 2]
    assert found.table["image_id"].tolist() == images["image_id"].tolist()


def test_training_halves_its_batch_until_it_fits(device, tmp_path, monkeypatch):
    run = Run(Parameters(tmp_path, preset=DEMO), TimeBudget(9.0, 0.0, lambda: 0.0))
    batches = []

    def fit(run, name, preset, images, out, *arguments, **options):
        batches.append(preset.rcnn.training.batch)
        if batches[-1] > 2:
            torch.empty(TOO_MUCH, dtype=torch.uint8, device=device)
        return out / "rcnn.safetensors"

    monkeypatch.setattr(stage_models, "member_images", lambda run, name: (run.preset, None))
    monkeypatch.setattr(stage_models, "fit", fit)
    train_models._train_in_smaller_batches(run, "rcnn", None)
    assert batches[-1] <= 2 < batches[0]
    assert [one // 2 for one in batches[:-1]] == batches[1:]
