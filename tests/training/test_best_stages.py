"""Every stage of preset `best` at 64 pixels, whole networks: it is built, steps and predicts the same when reloaded."""

import math

import pytest
import torch

from siimcovid.core.configuration import STAGES
from siimcovid.core.presets import load_preset
from siimcovid.kaggle.smoke_test import random_batch
from siimcovid.models import checkpoints
from siimcovid.training.optimizer import make_optimizer

SIDE = 64


def as_tensors(predicted: object) -> list[torch.Tensor]:
    """What a model predicts of a batch, whatever its nesting, as one list."""
    if isinstance(predicted, torch.Tensor):
        return [predicted]
    values = predicted.values() if isinstance(predicted, dict) else predicted
    return [tensor for value in values for tensor in as_tensors(value)]


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_is_built_steps_and_is_reloaded(stage, tmp_path):
    config = getattr(load_preset("best", {f"{stage}.{key}": SIDE for key in ("size", "infer_size")}), stage)
    torch.manual_seed(0)
    model = checkpoints.build_model(stage, config).train()
    before = {name: tensor.clone() for name, tensor in list(model.named_parameters())[-4:]}
    optimizer = make_optimizer(model, config.training)
    batch = random_batch(2, SIDE, torch.device("cpu"))
    losses = model(batch)
    total = sum(losses.values())
    assert math.isfinite(float(total))
    total.backward()
    missing = [name for name, one in model.named_parameters() if one.requires_grad and one.grad is None]
    assert missing == []  # all of it learns
    optimizer.step()
    after = dict(model.named_parameters())
    assert any(not torch.equal(tensor, after[name]) for name, tensor in before.items())
    path = tmp_path / f"{stage}.safetensors"
    checkpoints.save(path, model, stage, config)
    found, its_config, again = checkpoints.load(path)
    assert (found, its_config) == (stage, config)
    expected, given = (as_tensors(one.eval().predict(batch["images"])) for one in (model, again))
    assert len(expected) == len(given) > 0
    assert all(torch.equal(one, other) for one, other in zip(expected, given, strict=True))
