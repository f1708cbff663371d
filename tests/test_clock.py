"""The clock and the plan: what is dropped and in which order, and a run under slow disks, slow models and no time."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd
import pytest

from kernel_cells import draw_nothing, run_cells
from siimcovid import cache, checkpoint, clock, costs, pipeline, predict, stages, trained, validate
from siimcovid.clock import Choices, Clock, Costs, StageCost
from siimcovid.errors import InputError
from siimcovid.phantom_competition import write_competition
from siimcovid.presets import load_preset
from siimcovid.run import Run, summary
from tiny_weights import write_weights

ASKED = Choices(True, ("rcnn", "yolo"), {"rcnn": 10, "yolo": 20, "study": 40})

#: Of 100 films: detectors 1 s a film and pass, the study model .1 s; an epoch 100, 50 and 1 s.
COSTS = Costs(
    prepare=0.5,
    to_prepare=200,
    test_films=100,
    stages={
        "rcnn": StageCost(once=10, epoch=100, load=5, film=1),
        "yolo": StageCost(once=10, epoch=50, load=5, film=1),
        "study": StageCost(once=10, epoch=1, load=5, film=0.1),
    },
)


class Time:
    """A clock that stands still until it is told."""

    def __init__(self):
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def test_clock_counts_from_its_start_and_keeps_a_reserve():
    now = Time()
    now.seconds = 50.0
    timer = Clock(1.0, 20.0, now)
    assert timer.spent() == 30
    assert timer.left() == pytest.approx(3600 * (1 - clock.RESERVE) - 30)
    now.seconds += 3600
    assert timer.left() < 0
    assert Clock(1.0, now=now).spent() == 0


def test_forecast_is_this_sum():
    assert clock.forecast(COSTS, ASKED) == {
        "prepare": 0.5 * 200,
        "fit rcnn": 10 + 10 * 100,
        "fit yolo": 10 + 20 * 50,
        "fit study": 10 + 40 * 1,
        "curves": clock.PICTURES["curves"],
        "detect": 2 * (5 + 100 * 1 + 5 + 100 * 1),
        "classify": 5 + 100 * 0.1,
        "gallery": clock.PICTURES["gallery"],
        "submit": 0,
        "score": 0,
        "figures": 0,
    }
    assert clock.after("detect", clock.forecast(COSTS, ASKED)) == 15 + clock.PICTURES["gallery"]
    half = replace(ASKED, scale={"rcnn": 0.5})
    assert clock.forecast(COSTS, half)["fit rcnn"] == (10 + 10 * 100) / 4


TOTAL = sum(clock.forecast(COSTS, ASKED).values())


@pytest.mark.parametrize(
    ("available", "flips", "rcnn_epochs", "scale", "detectors"),
    [
        (TOTAL, True, 10, 1.0, 2),
        (TOTAL - 1, False, 10, 1.0, 2),  # 210 s are saved
        (TOTAL - 211, False, 10, 1.0, 2),  # .95 of ten epochs are ten, of YOLO's twenty nineteen
        (TOTAL - 400, False, 9, 1.0, 2),
        (1100, False, 3, 1.0, 2),  # 358 s without training, and 612 of 2040 for 3, 6 and 12 epochs
        (600, False, 3, 0.75, 2),
        (500, False, 6, 0.5, 2),
        (400, False, 4, 0.5, 2),
        (300, False, 5, 0.5, 1),
        (1, False, 1, 0.5, 1),  # nothing fits: the least
    ],
)
def test_what_is_dropped_in_which_order(available, flips, rcnn_epochs, scale, detectors):
    chosen = clock.choose(COSTS, ASKED, available)
    assert (chosen.flips, chosen.epochs["rcnn"], chosen.scale.get("rcnn", 1.0), len(chosen.detectors)) == (
        flips, rcnn_epochs, scale, detectors,
    )  # fmt: skip
    if available > 1:
        assert sum(clock.forecast(COSTS, chosen).values()) <= available
    assert set(chosen.epochs) == set(chosen.stages)


def test_more_time_never_drops_more():
    lengths = [len(clock.dropped(ASKED, clock.choose(COSTS, ASKED, seconds))) for seconds in range(100, 3000, 25)]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] == 4
    assert lengths[-1] == 0


EVERYTHING = replace(ASKED, members=3, pseudo=2, detectors=("rcnn", "yolo", "retinanet"))
EVERYTHING = replace(EVERYTHING, epochs={**ASKED.epochs, "retinanet": 10})
DEARER = replace(COSTS, train_films=200, stages={**COSTS.stages, "retinanet": COSTS.stages["rcnn"]})


def test_members_and_pseudo_labels_cost_what_they_are():
    seconds, single = (clock.forecast(DEARER, choices) for choices in (EVERYTHING, replace(EVERYTHING, members=1)))
    assert [step for step in seconds if step.startswith("fit")][:5] == [
        "fit rcnn", "fit yolo", "fit retinanet", "fit study", "fit rcnn.1",
    ]  # fmt: skip
    assert seconds["fit yolo.2"] == single["fit yolo"] == 10 + 20 * 50
    assert seconds["detect"] == 3 * single["detect"]
    assert seconds["classify"] == 3 * single["classify"]
    # two epochs on half as many films again, of each detector and member, and a second look
    assert seconds["relearn"] == 3 * sum(10 + each * 2 * 1.5 for each in (100, 50, 100)) + seconds["detect"]
    assert "relearn" not in clock.forecast(DEARER, replace(EVERYTHING, pseudo=0))


def test_the_dearest_for_the_least_goes_first():
    """Pseudo-labels, mirrored films, members one by one, epochs, resolution, detectors from the last to the first."""
    seen = []
    for seconds in range(30000, 50, -10):
        chosen = clock.choose(DEARER, EVERYTHING, seconds)
        scale = chosen.scale.get("rcnn", 1.0)
        state = bool(chosen.pseudo), chosen.flips, chosen.members, scale, len(chosen.detectors)
        if not seen or seen[-1] != state:
            seen.append(state)
    assert seen == [
        (True, True, 3, 1.0, 3),
        (False, True, 3, 1.0, 3),
        (False, False, 3, 1.0, 3),
        (False, False, 2, 1.0, 3),
        (False, False, 1, 1.0, 3),
        (False, False, 1, 0.75, 3),
        (False, False, 1, 0.5, 3),
        (False, False, 1, 0.5, 2),
        (False, False, 1, 0.5, 1),
    ]
    least = clock.choose(DEARER, EVERYTHING, 100)
    assert clock.dropped(EVERYTHING, least)[:3] == [
        "pseudo-labels: the detectors do not train on test films",
        "test-time augmentation: mirrored films are left out",
        "fold ensemble: 1 of 3 models of each stage",
    ]
    assert Choices.from_json(EVERYTHING.to_json()) == EVERYTHING


def test_dropped_is_said():
    chosen = clock.choose(COSTS, ASKED, 300)
    assert clock.dropped(ASKED, chosen) == [
        "test-time augmentation: mirrored films are left out",
        f"training epochs: rcnn {chosen.epochs['rcnn']} of 10, study {chosen.epochs['study']} of 40",
        "resolution: 50% of the side in pixels",
        "detectors: yolo left out",
    ]


def test_a_stage_that_has_begun_keeps_its_settings():
    now = replace(ASKED, epochs={"rcnn": 7, "yolo": 20, "study": 40}, scale={"rcnn": 0.75}, batch={"rcnn": 2})
    for available in (1e9, 300):
        chosen = clock.choose(COSTS, ASKED, available, now, {"rcnn"})
        assert (chosen.epochs["rcnn"], chosen.scale["rcnn"], chosen.batch) == (7, 0.75, {"rcnn": 2})
    assert clock.choose(COSTS, ASKED, 1e9, now, {"rcnn"}).epochs["yolo"] == 20


def test_steps_that_are_done_take_no_time():
    done = ["prepare", "fit rcnn", "fit yolo", "fit study"]
    assert clock.choose(COSTS, ASKED, 450, done=done) == ASKED


def test_choices_survive_json():
    chosen = clock.choose(COSTS, ASKED, 400)
    assert Choices.from_json(json.loads(json.dumps(chosen.to_json()))) == chosen
    for damaged in (None, {}, {**chosen.to_json(), "epochs": [1]}, {**chosen.to_json(), "scale": {"rcnn": "wide"}}):
        with pytest.raises(InputError, match=r"run\.json"):
            Choices.from_json(damaged)


@pytest.mark.parametrize("name", ["full", "small"])
def test_choices_change_the_preset(name):
    preset = load_preset(name)
    asked = clock.asked_choices(preset, checkpoint.DETECTORS, True)
    assert clock.apply(preset, asked) == preset
    chosen = replace(asked, flips=False, epochs={"yolo": 3}, scale={"rcnn": 0.5, "study": 0.75}, batch={"yolo": 1})
    changed = clock.apply(preset, chosen)
    assert changed.fusion.flips is False
    assert changed.yolo.training.epochs == 3
    assert (changed.yolo.training.batch, changed.yolo.size) == (1, preset.yolo.size)
    assert changed.yolo.training.nominal_batch == (preset.yolo.training.nominal_batch or preset.yolo.training.batch)
    assert changed.rcnn.size == preset.rcnn.size / 2
    assert changed.rcnn.infer_size == preset.rcnn.infer_size / 2
    assert [2 * side for side in changed.rcnn.anchor_sides] == list(preset.rcnn.anchor_sides)
    assert changed.study.size % 32 == 0 < changed.study.augment.crop + 1
    assert changed.study.augment.crop <= changed.study.infer_size < preset.study.infer_size


#: Test studies, and the side in pixels that the models look at: three quarters and half of it divide by 32.
STUDIES, SIDE = 8, 128


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> Path:
    top = tmp_path_factory.mktemp("clock")
    write_competition(top / "competition", train_studies=8, test_studies=STUDIES, seed=1, scale=0.03)
    write_weights(top / "weights", checkpoint.SUBMISSION_STAGES)
    return top


@pytest.fixture
def slow(material, tmp_path, monkeypatch) -> Callable[..., Run]:
    """Runs the notebook on a fake clock, where a film takes `film` seconds to prepare and `look(side)` to look at."""
    now = Time()
    draw_nothing(monkeypatch.setattr)
    monkeypatch.setattr(pipeline, "start", partial(pipeline.start, now=now))
    read, prepare, real_look = trained.read, cache.prepare, predict.look
    loaded: dict = {}

    def read_once(path: Path, stage: str):
        if stage not in loaded:
            config, model = read(material / "weights" / f"{stage}.safetensors", stage)
            loaded[stage] = replace(config, infer_batch=1, infer_size=SIDE), model
        return loaded[stage]

    def run(
        hours: float, film: float = 0.0, look: Callable = lambda side: 0.0, epoch: float = 0.0, **parameters
    ) -> Run:
        def slow_prepare(images, folder, size):
            now.seconds += film * sum(not (folder / f"{name}.png").is_file() for name in images["image_id"])
            return prepare(images, folder, size, 1)

        def slow_look(
            stage, config, model, images, folder, flip=False, device=None, may_go_on=lambda: True, change=None
        ):
            def go_on() -> bool:
                now.seconds += look(config.infer_size)
                return may_go_on()

            return real_look(stage, config, model, images, folder, flip, device, go_on, change)

        monkeypatch.setattr(cache, "prepare", slow_prepare)
        monkeypatch.setattr(predict, "look", slow_look)
        monkeypatch.setattr(costs, "look", slow_look)
        monkeypatch.setattr(stages, "fit", fake_training(now, epoch, material / "weights"))
        monkeypatch.setattr(trained, "read", read_once)
        out, given, now.seconds = tmp_path / "out", material / "competition", 0.0
        defaults = {"COMPETITION_DIR": str(given), "WEIGHTS_DIR": str(material / "weights"), "OUTPUT_DIR": str(out)}
        defaults |= {
            "PRESET": "small",
            "OVERRIDES": {"cache_size": 64, "fusion.flips": True},
            "HOURS": hours,
            "STARTED": 0.0,
        }
        run = run_cells(**defaults | parameters)["run"]
        checked = validate.validate(out / "submission.csv", given / "sample_submission.csv", out / "index.csv")
        assert checked.faults == []
        assert run.degraded == []
        return run

    return run


def fake_training(now: Time, epoch: float, given: Path):
    """Training that takes `epoch` seconds for an epoch on all eight studies, and asks the clock before each."""

    def fit(stage, preset, images, folder, start, out, may_start_epoch=lambda seconds: True):
        films = int((images["split"] == "train").sum())
        seconds, rows = epoch * films / 8, []
        while len(rows) < getattr(preset, stage).training.epochs and (not rows or may_start_epoch(seconds)):
            now.seconds += seconds
            row = {"epoch": len(rows) + 1, "loss": 1.0, "learning_rate": 1.0, "metric": None, "seconds": seconds}
            rows.append(row | {"films_per_second": films / max(seconds, 1e-9)})
        out.mkdir(parents=True, exist_ok=True)
        (out / f"{stage}.safetensors").write_bytes((given / f"{stage}.safetensors").read_bytes())
        (out / f"{stage}.json").write_text(json.dumps({"epochs": rows}))
        pd.DataFrame(rows).to_csv(out / f"{stage}.metrics.csv", index=False)
        return out / f"{stage}.safetensors"

    return fit


def test_ample_time_drops_nothing(slow):
    run = slow(9.0, film=1, look=lambda side: 1)
    assert run.dropped == run.ended == []
    assert set(run.seen) == {"rcnn", "yolo", "rcnn_flip", "yolo_flip"}
    assert run.by_priors == 0


def test_slow_disk_leaves_films_out_and_time_for_the_rest(slow):
    """Eight films of 200 s do not fit into eighteen minutes."""
    run = slow(0.3, film=200)
    assert 0 < len(run.test) < STUDIES
    assert run.clock.spent() <= 0.3 * 3600
    assert f"preparation: {STUDIES - len(run.test)} of {STUDIES} films are left out" in run.ended
    assert 0 < run.by_priors < 2 * STUDIES
    assert "the time or the disk did not suffice" in summary(run)


#: Pictures take no time on the fake clock.
PICTURES = clock.PICTURES["gallery"] + clock.PICTURES["figures"]


#: Each model takes 10 s a film. Measuring takes 60 s, four passes of detectors 320, the study model 80, pictures 5.
@pytest.mark.parametrize(
    ("seconds", "dropped", "passes"), [(470, 0, 4), (460, 1, 2), (300, 2, 2), (180, 2, 2), (120, 3, 1)]
)
def test_slow_models_drop_flips_then_resolution_then_a_detector(slow, seconds, dropped, passes):
    run = slow(seconds / 3600 / (1 - clock.RESERVE), look=lambda side: 10 * (side / SIDE) ** 2)
    assert len(run.dropped) == dropped, run.dropped
    assert len(run.seen) == passes
    assert run.clock.spent() <= run.clock.hours * 3600
    assert run.by_priors == 0
    spare = run.seconds.get("shortcuts", 0.0)  # that check is not planned: it takes what is left over, or is left out
    assert run.predicted_total == pytest.approx(run.clock.spent() - spare + PICTURES, rel=0.01)


def test_models_slower_than_measured_are_stopped_by_the_clock(slow):
    """The first films take a second, all others twenty: what was measured fits, and what happens does not."""
    times = iter([1.0] * 12)
    run = slow(0.07, look=lambda side: next(times, 20.0))
    assert any("looks at" in line for line in run.ended)
    assert run.clock.spent() <= 0.07 * 3600
    assert 0 < run.by_priors < 2 * STUDIES
    detections = pd.read_csv(run.folder / "detections.csv")
    assert set(detections["image_id"]) <= {name for films in run.seen.values() for name in films}


def test_slow_training_gets_fewer_epochs(slow):
    asked = {f"{stage}.training.epochs": 10 for stage in checkpoint.SUBMISSION_STAGES}
    run = slow(1.0, epoch=100, MODE="finetune", OVERRIDES={"cache_size": 64, **asked})
    assert run.clock.spent() <= 3600
    assert any(line.startswith("training epochs") for line in run.dropped)
    epochs = [len(json.loads((run.folder / "weights" / f"{s}.json").read_text())["epochs"]) for s in run.choices.stages]
    assert all(0 < count < 10 for count in epochs)
    assert run.by_priors == 0


def test_spent_budget_still_submits(slow):
    run = slow(1.0, STARTED=-3600.0)
    assert run.by_priors == 2 * STUDIES
    assert not list(run.cache.glob("*.png"))
    assert run.clock.spent() == 3600
    assert "the hours are spent" in summary(run)


def test_restart_keeps_the_plan_of_a_stage_that_has_begun(slow):
    first = slow(0.6, epoch=100, MODE="finetune", OVERRIDES={"cache_size": 64})
    epochs = dict(first.choices.epochs)
    assert epochs["rcnn"] < 7
    again = slow(99.0, MODE="finetune", OVERRIDES={"cache_size": 64})
    assert again.choices.epochs == epochs
    changed = slow(99.0, MODE="finetune", OVERRIDES={"cache_size": 64, "seed": 1})
    assert changed.choices.epochs["rcnn"] == 7


#: Two models of each stage, and an epoch on pseudo-labels: with these numbers of whatever film.
DEAREST = {"cache_size": 64, "fusion.flips": True, "members": 2, "folds": 2}
DEAREST |= {"pseudo.epochs": 1, "pseudo.none": 0.5, "pseudo.score": 1e-6}


def test_time_as_planned_suffices_to_learn_from_the_test_films(slow, tmp_path):
    given = {"look": lambda side: 10, "epoch": 10, "MODE": "finetune", "OVERRIDES": DEAREST}
    ample = slow(99.0, **given)
    assert (tmp_path / "out" / "weights" / "member_1" / "pseudo").is_dir()
    planned = ample.clock.spent() + PICTURES + clock.PICTURES["curves"]
    run = slow(1.02 * planned / 3600 / (1 - clock.RESERVE), OUTPUT_DIR=str(tmp_path / "tight"), **given)
    assert run.dropped == run.ended == []
    assert run.clock.spent() == pytest.approx(ample.clock.spent())


def test_a_second_look_that_time_ends_leaves_the_first(slow, tmp_path):
    """Once the detectors have learned from the test films they are slower than anyone could foresee."""
    again = tmp_path / "out" / "weights" / "pseudo"
    run = slow(1.0, look=lambda side: 400 if again.is_dir() else 1, MODE="finetune", OVERRIDES=DEAREST)
    assert any("looks at" in line for line in run.ended)
    assert all(len(films) == STUDIES for films in run.seen.values())
    assert len(run.seen) == 8  # two detectors' two models, on films and on mirrored ones
    assert set(pd.read_csv(run.folder / "detections.csv")["model"]) <= {*run.seen, "ensemble"}
    assert run.by_priors == 0


def test_restart_trains_members_on_the_films_they_began_with(slow):
    """A model that began as a stage's only one stays it, also where there is time for others now."""
    settings = {"cache_size": 64, "members": 2, "folds": 2}
    first = slow(0.6, epoch=100, MODE="finetune", OVERRIDES=settings)
    assert any(line.startswith("fold ensemble") for line in first.dropped)
    films = trained.member_films(first, "rcnn")[1]
    again = slow(99.0, MODE="finetune", OVERRIDES=settings)
    assert again.choices.models(["rcnn"]) == ["rcnn"]
    assert trained.member_films(again, "rcnn")[1]["image_id"].tolist() == films["image_id"].tolist()


def test_several_gpus_are_told_the_time_of_their_own_step(monkeypatch, tmp_path):
    now, seen = Time(), []
    run = Run(tmp_path, Clock(9.0, 0.0, now), mode="finetune", costs=COSTS)
    run.choices = replace(ASKED, members=2)
    monkeypatch.setattr(trained.torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(trained.launch, "fit", lambda *given: seen.append(given[-1]))
    monkeypatch.setattr(trained, "member_films", lambda run, name: (run.preset, run.films))
    monkeypatch.setattr(trained, "offer", lambda *_: None)
    pipeline._train(run, "rcnn.1")
    forecast = clock.forecast(COSTS, run.choices)
    assert seen == [run.clock.left() - clock.after("fit rcnn.1", forecast)]
