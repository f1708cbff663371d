"""The training loop: learning rates by formula, resume bit for bit, best epoch, faults that name their images."""

import math
from dataclasses import replace

import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import Dataset

from siimcovid.core.configuration import Training
from siimcovid.core.errors import InputError
from siimcovid.core.presets import FULL, SMALL
from siimcovid.models import checkpoints
from siimcovid.training.training_loop import NotFiniteError, learning_rate_factor, make_optimizer, train

CONFIG = replace(
    SMALL.study,
    training=Training(epochs=3, batch=4, learning_rate=0.05, momentum=0.9, clip_norm=1.0, ema=0.9, nominal_batch=8),
)


class Points(Dataset):
    """Points of the plane, to be told apart by a line; a ticket's noise depends on the ticket."""

    def __len__(self) -> int:
        return 21

    def __getitem__(self, ticket: int) -> dict:
        number = ticket % len(self)
        noise = torch.randn(2, generator=torch.Generator().manual_seed(ticket))
        study_label = number % 2
        return {
            "features": noise * 0.3 + (2 * study_label - 1),
            "study_labels": study_label,
            "image_ids": f"image{number}",
        }


class Line(nn.Module):
    """A model with draws of its own (dropout) and running statistics (a norm)."""

    def __init__(self):
        super().__init__()
        self.norm, self.drop, self.layer = nn.BatchNorm1d(2), nn.Dropout(0.3), nn.Linear(2, 4)

    def forward(self, batch: dict) -> dict:
        logits = self.layer(self.drop(self.norm(batch["features"])))
        return {"study_label": functional.cross_entropy(logits, batch["study_labels"])}


@pytest.fixture(autouse=True)
def small_checkpoints(monkeypatch):
    monkeypatch.setattr("siimcovid.training.training_loop.SAVE_EVERY", 0.0)  # after every batch


def run(out, config=CONFIG, **options):
    torch.manual_seed(0)
    path = train("study", config, Line(), Points(), out, seed=5, **options)
    return checkpoints.read_tensors(path)[0]


class Killed(BaseException):
    pass


def kill_at(step: int):
    count = iter(range(1, 1000))

    def on_step(progress):
        if next(count) == step:
            raise Killed

    return on_step


@pytest.mark.parametrize("steps", [[1], [4], [5], [6], [11], [14], [2, 2, 2, 2, 2], [5, 1, 4]])
def test_killed_and_resumed_equals_never_killed(tmp_path, steps):
    """5 batches an epoch, 3 epochs: killed within, at the end of and after epochs, once and again and again."""
    whole = run(tmp_path / "whole")
    for step in steps:
        with pytest.raises(Killed):
            run(tmp_path / "killed", on_step=kill_at(step))
    resumed = run(tmp_path / "killed")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    tables = [pd.read_csv(tmp_path / name / "study.metrics.csv") for name in ("whole", "killed")]
    assert tables[0]["loss"].tolist() == tables[1]["loss"].tolist()


def test_other_seed_other_weights(tmp_path):
    one = run(tmp_path / "one")
    torch.manual_seed(0)
    other = checkpoints.read_tensors(train("study", CONFIG, Line(), Points(), tmp_path / "other", seed=6))[0]
    assert not torch.equal(one["layer.weight"], other["layer.weight"])


def test_learns(tmp_path):
    run(tmp_path)
    losses = pd.read_csv(tmp_path / "study.metrics.csv")["loss"]
    assert losses.iloc[-1] < 0.8 * losses.iloc[0]


def test_finished_run_is_not_repeated(tmp_path):
    run(tmp_path)
    stamp = (tmp_path / "study.safetensors").stat().st_mtime_ns
    run(tmp_path, on_step=kill_at(1))
    assert (tmp_path / "study.safetensors").stat().st_mtime_ns == stamp
    assert not (tmp_path / "study.resume.pt").exists()


def test_other_settings_do_not_resume(tmp_path):
    with pytest.raises(Killed):
        run(tmp_path, on_step=kill_at(2))
    with pytest.raises(InputError, match=r"study\.resume\.pt"):
        run(tmp_path, config=replace(CONFIG, dropout=0.1))


def test_keeps_the_best_epoch(tmp_path):
    metrics, states = iter([0.1, 0.7, 0.3]), []

    def evaluate(model):
        states.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return next(metrics)

    best = run(tmp_path, evaluate=evaluate)
    assert torch.equal(best["layer.weight"], states[1]["layer.weight"])


def test_stops_when_it_gets_no_better(tmp_path):
    config = replace(CONFIG, training=replace(CONFIG.training, epochs=9, patience=2))
    metrics = iter([0.5, 0.4, 0.3, 0.2])
    run(tmp_path, config, evaluate=lambda model: next(metrics))
    assert len(pd.read_csv(tmp_path / "study.metrics.csv")) == 3


def test_stops_when_the_time_is_up(tmp_path):
    run(tmp_path, may_start_epoch=lambda seconds: False)
    assert len(pd.read_csv(tmp_path / "study.metrics.csv")) == 1


def test_loss_that_is_not_finite_names_the_images(tmp_path):
    class Broken(Line):
        def forward(self, batch):
            losses = super().forward(batch)
            return {"study_label": losses["study_label"] * math.nan} if "image7" in batch["image_ids"] else losses

    with pytest.raises(NotFiniteError, match="image7"):
        train("study", CONFIG, Broken(), Points(), tmp_path)


def test_no_images(tmp_path):
    class Nothing(Points):
        def __len__(self):
            return 0

    with pytest.raises(InputError, match="no images"):
        train("study", CONFIG, Line(), Nothing(), tmp_path)


@pytest.mark.parametrize(("epoch", "stepped"), [(0, 0), (1, 0), (2, 2), (3, 2), (49, 48)])
def test_learning_rate_is_equation_1(epoch, stepped):
    training = FULL.rcnn.training
    expected = 0.5 * (1 + math.cos(stepped * math.pi / 50)) * 0.95 + 0.05
    assert learning_rate_factor(training, epoch * 7 + 3, 7) == pytest.approx(expected)


def test_warm_up_is_linear():
    training = FULL.yolo.training
    assert learning_rate_factor(training, 0, 10_000) == pytest.approx(1 / 1000)
    assert learning_rate_factor(training, 499, 10_000) == pytest.approx(0.5)
    assert learning_rate_factor(training, 1500, 10_000) == 1.0


def test_one_cycle_rises_and_falls_to_nothing():
    training = replace(SMALL.rcnn.training, epochs=10)
    factors = [learning_rate_factor(training, update, 10) for update in range(101)]
    assert max(factors) == factors[20] == 1.0
    assert factors[:21] == sorted(factors[:21])
    assert factors[20:] == sorted(factors[20:], reverse=True)
    assert factors[100] == pytest.approx(0.0)


def test_weight_decay_spares_biases_and_norms():
    model = Line()
    decayed, spared = make_optimizer(model, replace(CONFIG.training, weight_decay=0.1)).param_groups
    assert [p.shape for p in decayed["params"]] == [model.layer.weight.shape]
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)
    assert len(spared["params"]) == 3
