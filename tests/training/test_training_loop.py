"""The training loop: learning rates by formula, resume bit for bit, best epoch, faults that name their images."""

import json
import math
import pickle
import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import Dataset

from siimcovid.core.configuration import Training
from siimcovid.core.errors import InputError
from siimcovid.core.presets import DEMO, FULL
from siimcovid.models import checkpoints
from siimcovid.models.checkpoints import build_model
from siimcovid.training import training_loop
from siimcovid.training.epoch_log import clock_time, short
from siimcovid.training.learning_rate import learning_rate_factor
from siimcovid.training.optimizer import make_average, make_optimizer
from siimcovid.training.training_loop import NotFiniteError, train

CONFIG = replace(
    DEMO.study,
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
    path = train("study", config, options.pop("model", Line)(), Points(), out, **{"seed": 5} | options)
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


@pytest.mark.parametrize("fault", ["settings", "truncated", "foreign", "pickle"])
def test_a_state_that_cannot_be_used_is_set_aside(tmp_path, fault):
    """It is named, and the stage is trained as if it were not there."""
    config = replace(CONFIG, dropout=0.1) if fault == "settings" else CONFIG
    whole = run(tmp_path / "whole", config)
    state, warnings = tmp_path / "out" / "study.resume.pt", []
    with pytest.raises(Killed):
        run(tmp_path / "out", on_step=kill_at(6))
    if fault == "truncated":
        state.write_bytes(state.read_bytes()[:-1000])
    elif fault == "foreign":
        torch.save({"model": {}}, state)
    elif fault == "pickle":
        state.write_bytes(pickle.dumps(Path))
    content = state.read_bytes()
    found = run(tmp_path / "out", config, warn=warnings.append)
    assert len(warnings) == 1
    assert str(state) in warnings[0]
    assert "trained anew" in warnings[0]
    assert ("dropout" in warnings[0]) == (fault == "settings")
    assert (tmp_path / "out" / "study.resume.old.pt").read_bytes() == content
    assert all(torch.equal(whole[name], found[name]) for name in whole)


def answering(*answers: bool):
    """`may_start_epoch` of a session: what it says, question by question."""
    left = iter(answers)
    return lambda seconds: next(left)


def weight_sum(model) -> float:
    return float(model.layer.weight.detach().abs().sum())


def test_paused_and_resumed_in_another_folder(tmp_path):
    """Sessions of one epoch each and one without time, each with the read-only output of the one before, end with the
    bytes of an unbroken run."""
    run(tmp_path / "whole", evaluate=weight_sum)
    before, files = None, set()
    for number, answers in enumerate([(False,), (False,), (True, False), (True,)]):
        out = tmp_path / f"session{number}"
        may_start = answering(*answers)
        run(out, evaluate=weight_sum, may_start_epoch=may_start, pause=True, resume_from=before)
        facts = json.loads((out / "study.json").read_text(encoding="utf-8"))
        assert facts["finished"] == (number == 3)
        assert (out / "study.resume.pt").exists() == (number < 3)
        assert len(facts["epochs"]) == (1, 1, 2, 3)[number]
        if before is not None:
            assert {(path, path.stat().st_mtime_ns) for path in before.rglob("*")} == files
        files, before = {(path, path.stat().st_mtime_ns) for path in out.rglob("*")}, out
    names = ("study.safetensors", "study.metrics.csv")
    assert (before / names[0]).read_bytes() == (tmp_path / "whole" / names[0]).read_bytes()
    losses = [pd.read_csv(folder / names[1])["loss"].tolist() for folder in (before, tmp_path / "whole")]
    assert losses[0] == losses[1]
    later = tmp_path / "later"  # what an earlier session finished is taken over, not trained again
    run(later, evaluate=weight_sum, resume_from=before, on_step=kill_at(1))
    assert all((later / name).read_bytes() == (before / name).read_bytes() for name in names)


def test_a_pause_is_not_taken_for_the_end(tmp_path):
    """In the same folder: a later call goes on. Without `pause` what there is counts as finished, as it did."""
    whole = run(tmp_path / "whole")
    first = run(tmp_path / "out", may_start_epoch=answering(False), pause=True)
    assert not torch.equal(first["layer.weight"], whole["layer.weight"])
    assert torch.equal(run(tmp_path / "out")["layer.weight"], whole["layer.weight"])
    run(tmp_path / "cut", may_start_epoch=answering(False))
    assert torch.equal(run(tmp_path / "cut")["layer.weight"], first["layer.weight"])


def test_a_state_of_others_in_another_folder_is_left_there(tmp_path):
    warnings = []
    run(tmp_path / "one", may_start_epoch=answering(False), pause=True)
    other = run(tmp_path / "two", seed=6, resume_from=tmp_path / "one", warn=warnings.append)
    assert "(seed)" in warnings[0]
    assert (tmp_path / "one" / "study.resume.pt").is_file()
    assert torch.equal(other["layer.weight"], run(tmp_path / "three", seed=6)["layer.weight"])


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


class Broken(Line):
    """Its loss is not finite in the fourth step of the `bad` epochs, from 1; without any, wherever an image is seen."""

    bad, image, count = (), "image7", 0

    def forward(self, batch):
        losses = super().forward(batch)
        epoch, step = divmod(self.count, 5)
        self.count += 1
        if (epoch + 1 in self.bad and step == 3) or (not self.bad and self.image in batch["image_ids"]):
            return {"study_label": losses["study_label"] * math.nan}
        return losses


class BrokenLate(Broken):
    bad = (3,)


def test_loss_that_is_not_finite_names_the_images(tmp_path):
    with pytest.raises(NotFiniteError, match="image7"):
        train("study", CONFIG, Broken(), Points(), tmp_path)


@pytest.mark.parametrize("metrics", [[0.3, 0.2], None], ids=["the best epoch", "the last"])
def test_a_loss_that_is_not_finite_loses_no_good_epoch(tmp_path, metrics):
    """In the third epoch: the best of the first two is kept, or the second, and the run says so."""
    states, warnings = [], []

    def evaluate(model):
        states.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return metrics[len(states) - 1]

    kept = run(tmp_path, model=BrokenLate, evaluate=metrics and evaluate, warn=warnings.append)
    assert "goes on" not in warnings[0]
    assert f"keeps the weights of epoch {1 if metrics else 2}" in warnings[0]
    if metrics:
        assert torch.equal(kept["layer.weight"], states[0]["layer.weight"])
    else:
        cut = run(tmp_path / "cut", may_start_epoch=answering(True, False))
        assert torch.equal(kept["layer.weight"], cut["layer.weight"])
    facts = json.loads((tmp_path / "study.json").read_text(encoding="utf-8"))
    assert facts["finished"] is True
    assert len(facts["epochs"]) == 2
    assert not (tmp_path / "study.resume.pt").exists()


class OverflowsInHalf(Line):
    """Its loss is not finite in mixed precision, from the second epoch on."""

    count = 0

    def forward(self, batch):
        self.count += 1
        losses = super().forward(batch)
        if torch.is_autocast_enabled("cpu") and self.count > 7:
            return {"study_label": losses["study_label"] * math.inf}
        return losses


def test_mixed_precision_is_given_up_once(tmp_path, monkeypatch):
    """The run goes on in float32 from the last good state, and stays there after a restart."""
    monkeypatch.setattr(training_loop, "autocast_type", lambda device: torch.bfloat16)
    warnings = []
    with pytest.raises(Killed):
        run(tmp_path, model=OverflowsInHalf, warn=warnings.append, on_step=kill_at(9))
    assert "goes on in float32 from epoch 2" in warnings[0]
    run(tmp_path, model=OverflowsInHalf, warn=warnings.append)
    assert len(warnings) == 1
    assert len(pd.read_csv(tmp_path / "study.metrics.csv")) == 3


def test_an_update_that_overflows_moves_nothing(tmp_path, monkeypatch):
    """float16 with a scaler whose first factor overflows the gradients: neither the schedule nor the average counts
    the update that is left out."""
    monkeypatch.setattr(training_loop, "autocast_type", lambda device: torch.float16)
    scaler = torch.amp.GradScaler
    monkeypatch.setattr(torch.amp, "GradScaler", lambda device, enabled: scaler(device, 1e38, enabled=enabled))
    config = replace(CONFIG, training=replace(CONFIG.training, schedule="one_cycle"))
    updates, rates = [], []

    def on_step(progress):
        updates.append(progress.updates)

    run(tmp_path, config, on_step=on_step)
    left_out = updates.count(0)
    assert left_out >= 2
    assert updates[-1] < 9
    rates = pd.read_csv(tmp_path / "study.metrics.csv")["learning_rate"]
    expected = learning_rate_factor(config.training, updates[-1], 3) * config.training.learning_rate
    assert rates.iloc[-1] == pytest.approx(expected)


def test_a_metric_that_is_no_number_is_none(tmp_path):
    """A fold without boxes: the last epoch is kept, patience does not count, and the JSON has no NaN."""
    config = replace(CONFIG, training=replace(CONFIG.training, patience=1))
    kept = run(tmp_path, config, evaluate=lambda model: math.nan)
    last = run(tmp_path / "without", config)
    assert torch.equal(kept["layer.weight"], last["layer.weight"])
    facts = json.loads((tmp_path / "study.json").read_text(encoding="utf-8"))
    assert [epoch["metric"] for epoch in facts["epochs"]] == [None] * 3


def test_the_last_update_of_an_epoch(tmp_path):
    """Five steps, two to an update: three updates an epoch, the last of one step and of its whole gradient; the
    schedule has as many."""
    config = replace(
        CONFIG, training=replace(CONFIG.training, ema=0.0, momentum=0.0, clip_norm=0.0, schedule="one_cycle")
    )
    updates = []
    run(tmp_path, config, on_step=lambda progress: updates.append(progress.updates))
    assert updates == [0, 1, 1, 2, 3, 3, 4, 4, 5, 6, 6, 7, 7, 8, 9]
    rates = pd.read_csv(tmp_path / "study.metrics.csv")["learning_rate"].tolist()
    assert rates[-1] == pytest.approx(0.0)
    assert rates[0] == pytest.approx(0.05 * learning_rate_factor(config.training, 3, 3))


def test_one_line_an_epoch(tmp_path, capsys):
    run(tmp_path, evaluate=lambda model: 0.25)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    form = r"study 2/3  loss \d?\.\d{3}  AP \.250 \(best \.250 at 1\)  lr \d\.\de-\d  \S+ images/s  0:0\d left 0:0\d"
    assert re.fullmatch(form, lines[1])
    run(tmp_path / "without")
    assert "AP" not in capsys.readouterr().out


@pytest.mark.parametrize(("value", "text"), [(0.4123, ".412"), (1.5, "1.500"), (-0.25, "-.250"), (math.nan, "nan")])
def test_short_numbers(value, text):
    assert short(value) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (41, "0:41"), (250, "4:10"), (3723, "1:02:03")])
def test_times(seconds, text):
    assert clock_time(seconds) == text


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
    training = replace(DEMO.rcnn.training, epochs=10)
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


def test_what_stands_on_a_backbone_learns_at_a_rate_of_its_own():
    config = replace(DEMO.study, frozen=False)
    model, training = build_model("study", config), replace(config.training, learning_rate=1e-4, head_rate=5.0)
    rate_of = {p: group["lr"] for group in make_optimizer(model, training).param_groups for p in group["params"]}
    assert {rate_of[p] for p in model.backbone.parameters()} == {1e-4}
    assert {rate_of[p] for p in model.head.parameters()} == {5 * 1e-4}
    assert len(rate_of) == len(list(model.parameters()))
    without = Line()  # nothing is pretrained, so nothing is slower than the rest
    assert {group["lr"] for group in make_optimizer(without, training).param_groups} == {1e-4}


def test_a_short_average_forgets_where_it_began():
    """A weight that is 0 at first and 1 from then on: after n updates prod (1 - 9 / (10 + k)) of the 0 is left."""
    model = nn.Linear(1, 1, bias=False)
    averaged = make_average(model, replace(CONFIG.training, ema=0.99), torch.device("cpu"))
    with torch.no_grad():
        model.weight.zero_()
        averaged.update_parameters(model)  # the first is a copy
        model.weight.fill_(1.0)
        for _ in range(20):
            averaged.update_parameters(model)
    left = math.prod(min(0.99, (1 + n) / (10 + n)) for n in range(1, 21))
    assert averaged.module.weight.item() == pytest.approx(1 - left, rel=1e-5)
    assert left < 1e-3 < 0.99**20
