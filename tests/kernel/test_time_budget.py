"""The clock and the plan: what is dropped and in which order, and a run under slow disks, slow models and no time."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd
import pytest

from siimcovid.core.errors import InputError
from siimcovid.core.presets import load_preset
from siimcovid.data import image_cache
from siimcovid.evaluation import submission_validator
from siimcovid.inference import predictor
from siimcovid.kernel import stage_models, step_profile, steps, time_budget
from siimcovid.kernel.run import Run, summary
from siimcovid.kernel.time_budget import Profile, RunPlan, StageProfile, TimeBudget
from siimcovid.models import checkpoints
from siimcovid.synthetic.demo_competition import write_competition
from siimcovid.training import train_stage
from support.kernel_cells import draw_nothing, run_cells
from support.tiny_weights import write_weights

REQUESTED = RunPlan(True, ("rcnn", "yolo"), {"rcnn": 10, "yolo": 20, "study": 40})

#: Of 100 images: detectors 1 s an image and pass, the study model .1 s; an epoch 100, 50 and 1 s.
PROFILE = Profile(
    prepare=0.5,
    to_prepare=200,
    test_images=100,
    stages={
        "rcnn": StageProfile(once=10, epoch=100, load=5, image=1),
        "yolo": StageProfile(once=10, epoch=50, load=5, image=1),
        "study": StageProfile(once=10, epoch=1, load=5, image=0.1),
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
    timer = TimeBudget(1.0, 20.0, now)
    assert timer.spent() == 30
    assert timer.left() == pytest.approx(3600 * (1 - time_budget.RESERVE) - 30)
    now.seconds += 3600
    assert timer.left() < 0
    assert TimeBudget(1.0, now=now).spent() == 0


def test_forecast_is_this_sum():
    assert time_budget.forecast(PROFILE, REQUESTED) == {
        "prepare": 0.5 * 200,
        "fit rcnn": 10 + 10 * 100,
        "fit yolo": 10 + 20 * 50,
        "fit study": 10 + 40 * 1,
        "curves": time_budget.PICTURES["curves"],
        "detect": 2 * (5 + 100 * 1 + 5 + 100 * 1),
        "classify": 5 + 100 * 0.1,
        "gallery": time_budget.PICTURES["gallery"],
        "submit": 0,
        "score": 0,
        "figures": 0,
    }
    assert time_budget.after("detect", time_budget.forecast(PROFILE, REQUESTED)) == 15 + time_budget.PICTURES["gallery"]
    half = replace(REQUESTED, scale={"rcnn": 0.5})
    assert time_budget.forecast(PROFILE, half)["fit rcnn"] == (10 + 10 * 100) / 4


TOTAL = sum(time_budget.forecast(PROFILE, REQUESTED).values())


@pytest.mark.parametrize(
    ("available", "hflip_tta", "rcnn_epochs", "scale", "detectors"),
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
def test_what_is_dropped_in_which_order(available, hflip_tta, rcnn_epochs, scale, detectors):
    chosen = time_budget.fit_plan(PROFILE, REQUESTED, available)
    assert (chosen.hflip_tta, chosen.epochs["rcnn"], chosen.scale.get("rcnn", 1.0), len(chosen.detectors)) == (
        hflip_tta, rcnn_epochs, scale, detectors,
    )  # fmt: skip
    if available > 1:
        assert sum(time_budget.forecast(PROFILE, chosen).values()) <= available
    assert set(chosen.epochs) == set(chosen.stages)


def test_more_time_never_drops_more():
    lengths = [
        len(time_budget.dropped(REQUESTED, time_budget.fit_plan(PROFILE, REQUESTED, seconds)))
        for seconds in range(100, 3000, 25)
    ]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] == 4
    assert lengths[-1] == 0


EVERYTHING = replace(REQUESTED, members=3, pseudo=2, detectors=("rcnn", "yolo", "retinanet"))
EVERYTHING = replace(EVERYTHING, epochs={**REQUESTED.epochs, "retinanet": 10})
DEARER = replace(PROFILE, train_images=200, stages={**PROFILE.stages, "retinanet": PROFILE.stages["rcnn"]})


def test_members_and_pseudo_labels_cost_what_they_are():
    seconds, single = (time_budget.forecast(DEARER, plan) for plan in (EVERYTHING, replace(EVERYTHING, members=1)))
    assert [step for step in seconds if step.startswith("fit")][:5] == [
        "fit rcnn", "fit yolo", "fit retinanet", "fit study", "fit rcnn.1",
    ]  # fmt: skip
    assert seconds["fit yolo.2"] == single["fit yolo"] == 10 + 20 * 50
    assert seconds["detect"] == 3 * single["detect"]
    assert seconds["classify"] == 3 * single["classify"]
    # two epochs on half as many images again, of each detector and member, and a second look
    assert (
        seconds["fine_tune_on_pseudo_labels"]
        == 3 * sum(10 + each * 2 * 1.5 for each in (100, 50, 100)) + seconds["detect"]
    )
    assert "fine_tune_on_pseudo_labels" not in time_budget.forecast(DEARER, replace(EVERYTHING, pseudo=0))


def test_the_dearest_for_the_least_goes_first():
    """Pseudo-labels, mirrored images, members one by one, epochs, resolution, detectors from the last to the first."""
    seen = []
    for seconds in range(30000, 50, -10):
        chosen = time_budget.fit_plan(DEARER, EVERYTHING, seconds)
        scale = chosen.scale.get("rcnn", 1.0)
        state = bool(chosen.pseudo), chosen.hflip_tta, chosen.members, scale, len(chosen.detectors)
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
    least = time_budget.fit_plan(DEARER, EVERYTHING, 100)
    assert time_budget.dropped(EVERYTHING, least)[:3] == [
        "pseudo-labels: the detectors do not train on test images",
        "test-time augmentation: mirrored images are left out",
        "fold ensemble: 1 of 3 models of each stage",
    ]
    assert RunPlan.from_json(EVERYTHING.to_json()) == EVERYTHING


def test_dropped_is_said():
    chosen = time_budget.fit_plan(PROFILE, REQUESTED, 300)
    assert time_budget.dropped(REQUESTED, chosen) == [
        "test-time augmentation: mirrored images are left out",
        f"training epochs: rcnn {chosen.epochs['rcnn']} of 10, study {chosen.epochs['study']} of 40",
        "resolution: 50% of the side in pixels",
        "detectors: yolo left out",
    ]


def test_a_stage_that_has_begun_keeps_its_settings():
    now = replace(REQUESTED, epochs={"rcnn": 7, "yolo": 20, "study": 40}, scale={"rcnn": 0.75}, batch={"rcnn": 2})
    for available in (1e9, 300):
        chosen = time_budget.fit_plan(PROFILE, REQUESTED, available, now, {"rcnn"})
        assert (chosen.epochs["rcnn"], chosen.scale["rcnn"], chosen.batch) == (7, 0.75, {"rcnn": 2})
    assert time_budget.fit_plan(PROFILE, REQUESTED, 1e9, now, {"rcnn"}).epochs["yolo"] == 20


def test_steps_that_are_done_take_no_time():
    done = ["prepare", "fit rcnn", "fit yolo", "fit study"]
    assert time_budget.fit_plan(PROFILE, REQUESTED, 450, done=done) == REQUESTED


def test_choices_survive_json():
    chosen = time_budget.fit_plan(PROFILE, REQUESTED, 400)
    assert RunPlan.from_json(json.loads(json.dumps(chosen.to_json()))) == chosen
    for damaged in (None, {}, {**chosen.to_json(), "epochs": [1]}, {**chosen.to_json(), "scale": {"rcnn": "wide"}}):
        with pytest.raises(InputError, match=r"run\.json"):
            RunPlan.from_json(damaged)


@pytest.mark.parametrize("name", ["full", "small"])
def test_choices_change_the_preset(name):
    preset = load_preset(name)
    requested = time_budget.plan_of_preset(preset, checkpoints.DETECTORS, True)
    assert time_budget.apply(preset, requested) == preset
    chosen = replace(
        requested, hflip_tta=False, epochs={"yolo": 3}, scale={"rcnn": 0.5, "study": 0.75}, batch={"yolo": 1}
    )
    changed = time_budget.apply(preset, chosen)
    assert changed.fusion.hflip_tta is False
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
    top = tmp_path_factory.mktemp("budget")
    write_competition(top / "competition", train_studies=8, test_studies=STUDIES, seed=1, scale=0.03)
    write_weights(top / "weights", checkpoints.SUBMISSION_STAGES)
    return top


@pytest.fixture
def slow(material, tmp_path, monkeypatch) -> Callable[..., Run]:
    """Runs the notebook on a fake clock, where an image takes `image` seconds to prepare and `predict_images(side)`
    to look at."""
    now = Time()
    draw_nothing(monkeypatch.setattr)
    monkeypatch.setattr(steps, "start", partial(steps.start, now=now))
    read, prepare, real_look = stage_models.read, image_cache.prepare, predictor.predict_images
    loaded: dict = {}

    def read_once(path: Path, stage: str):
        if stage not in loaded:
            config, model = read(material / "weights" / f"{stage}.safetensors", stage)
            loaded[stage] = replace(config, infer_batch=1, infer_size=SIDE), model
        return loaded[stage]

    def run(
        hours: float, image: float = 0.0, predict_images: Callable = lambda side: 0.0, epoch: float = 0.0, **parameters
    ) -> Run:
        def slow_prepare(images, folder, size):
            now.seconds += image * sum(not (folder / f"{name}.png").is_file() for name in images["image_id"])
            return prepare(images, folder, size, 1)

        def slow_look(
            stage, config, model, images, folder, hflip=False, device=None, may_go_on=lambda: True, change=None
        ):
            def go_on() -> bool:
                now.seconds += predict_images(config.infer_size)
                return may_go_on()

            return real_look(stage, config, model, images, folder, hflip, device, go_on, change)

        monkeypatch.setattr(image_cache, "prepare", slow_prepare)
        monkeypatch.setattr(predictor, "predict_images", slow_look)
        monkeypatch.setattr(step_profile, "predict_images", slow_look)
        monkeypatch.setattr(train_stage, "fit", fake_training(now, epoch, material / "weights"))
        monkeypatch.setattr(stage_models, "read", read_once)
        out, given, now.seconds = tmp_path / "out", material / "competition", 0.0
        defaults = {"COMPETITION_DIR": str(given), "WEIGHTS_DIR": str(material / "weights"), "OUTPUT_DIR": str(out)}
        defaults |= {
            "PRESET": "small",
            "OVERRIDES": {"cache_size": 64, "fusion.hflip_tta": True},
            "HOURS": hours,
            "STARTED": 0.0,
        }
        run = run_cells(**defaults | parameters)["run"]
        checked = submission_validator.validate(
            out / "submission.csv", given / "sample_submission.csv", out / "index.csv"
        )
        assert checked.faults == []
        assert run.degraded == []
        return run

    return run


def fake_training(now: Time, epoch: float, given: Path):
    """Training that takes `epoch` seconds for an epoch on all eight studies, and asks the clock before each."""

    def fit(stage, preset, images, folder, start, out, may_start_epoch=lambda seconds: True):
        samples = int((images["split"] == "train").sum())
        seconds, rows = epoch * samples / 8, []
        while len(rows) < getattr(preset, stage).training.epochs and (not rows or may_start_epoch(seconds)):
            now.seconds += seconds
            row = {"epoch": len(rows) + 1, "loss": 1.0, "learning_rate": 1.0, "metric": None, "seconds": seconds}
            rows.append(row | {"images_per_second": samples / max(seconds, 1e-9)})
        out.mkdir(parents=True, exist_ok=True)
        (out / f"{stage}.safetensors").write_bytes((given / f"{stage}.safetensors").read_bytes())
        (out / f"{stage}.json").write_text(json.dumps({"epochs": rows}))
        pd.DataFrame(rows).to_csv(out / f"{stage}.metrics.csv", index=False)
        return out / f"{stage}.safetensors"

    return fit


@pytest.mark.slow
def test_ample_time_drops_nothing(slow):
    run = slow(9.0, image=1, predict_images=lambda side: 1)
    assert run.dropped == run.ended == []
    assert set(run.seen) == {"rcnn", "yolo", "rcnn_hflip", "yolo_hflip"}
    assert run.by_priors == 0


def test_slow_disk_leaves_images_out_and_time_for_the_rest(slow):
    """Eight images of 200 s do not fit into eighteen minutes."""
    run = slow(0.3, image=200)
    assert 0 < len(run.test) < STUDIES
    assert run.budget.spent() <= 0.3 * 3600
    assert f"preparation: {STUDIES - len(run.test)} of {STUDIES} images are left out" in run.ended
    assert 0 < run.by_priors < 2 * STUDIES
    assert "the time or the disk did not suffice" in summary(run)


#: Pictures take no time on the fake clock.
PICTURES = time_budget.PICTURES["gallery"] + time_budget.PICTURES["figures"]


#: Each model takes 10 s an image. Measuring takes 60 s, four passes of detectors 320, the study model 80, pictures 5.
@pytest.mark.parametrize(
    ("seconds", "dropped", "passes"), [(470, 0, 4), (460, 1, 2), (300, 2, 2), (180, 2, 2), (120, 3, 1)]
)
def test_slow_models_drop_flips_then_resolution_then_a_detector(slow, seconds, dropped, passes):
    run = slow(seconds / 3600 / (1 - time_budget.RESERVE), predict_images=lambda side: 10 * (side / SIDE) ** 2)
    assert len(run.dropped) == dropped, run.dropped
    assert len(run.seen) == passes
    assert run.budget.spent() <= run.budget.hours * 3600
    assert run.by_priors == 0
    spare = run.seconds.get("shortcuts", 0.0)  # that check is not planned: it takes what is left over, or is left out
    assert run.predicted_total == pytest.approx(run.budget.spent() - spare + PICTURES, rel=0.01)


def test_models_slower_than_measured_are_stopped_by_the_clock(slow):
    """The first images take a second, all others twenty: what was measured fits, and what happens does not."""
    times = iter([1.0] * 12)
    run = slow(0.07, predict_images=lambda side: next(times, 20.0))
    assert any("looks at" in line for line in run.ended)
    assert run.budget.spent() <= 0.07 * 3600
    assert 0 < run.by_priors < 2 * STUDIES
    detections = pd.read_csv(run.folder / "detections.csv")
    assert set(detections["image_id"]) <= {name for samples in run.seen.values() for name in samples}


@pytest.mark.slow
def test_slow_training_gets_fewer_epochs(slow):
    requested = {f"{stage}.training.epochs": 10 for stage in checkpoints.SUBMISSION_STAGES}
    run = slow(1.0, epoch=100, MODE="finetune", OVERRIDES={"cache_size": 64, **requested})
    assert run.budget.spent() <= 3600
    assert any(line.startswith("training epochs") for line in run.dropped)
    epochs = [len(json.loads((run.folder / "weights" / f"{s}.json").read_text())["epochs"]) for s in run.plan.stages]
    assert all(0 < count < 10 for count in epochs)
    assert run.by_priors == 0


def test_spent_budget_still_submits(slow):
    run = slow(1.0, STARTED=-3600.0)
    assert run.by_priors == 2 * STUDIES
    assert not list(run.cache.glob("*.png"))
    assert run.budget.spent() == 3600
    assert "the hours are spent" in summary(run)


def test_restart_keeps_the_plan_of_a_stage_that_has_begun(slow):
    first = slow(0.6, epoch=100, MODE="finetune", OVERRIDES={"cache_size": 64})
    epochs = dict(first.plan.epochs)
    assert epochs["rcnn"] < 7
    again = slow(99.0, MODE="finetune", OVERRIDES={"cache_size": 64})
    assert again.plan.epochs == epochs
    changed = slow(99.0, MODE="finetune", OVERRIDES={"cache_size": 64, "seed": 1})
    assert changed.plan.epochs["rcnn"] == 7


#: Two models of each stage, and an epoch on pseudo-labels: with these numbers of whatever image.
DEAREST = {"cache_size": 64, "fusion.hflip_tta": True, "members": 2, "folds": 2}
DEAREST |= {"pseudo.epochs": 1, "pseudo.none": 0.5, "pseudo.score": 1e-6}


def test_time_as_planned_suffices_to_learn_from_the_test_images(slow, tmp_path):
    given = {"predict_images": lambda side: 10, "epoch": 10, "MODE": "finetune", "OVERRIDES": DEAREST}
    ample = slow(99.0, **given)
    assert (tmp_path / "out" / "weights" / "member_1" / "pseudo").is_dir()
    planned = ample.budget.spent() + PICTURES + time_budget.PICTURES["curves"]
    run = slow(1.02 * planned / 3600 / (1 - time_budget.RESERVE), OUTPUT_DIR=str(tmp_path / "tight"), **given)
    assert run.dropped == run.ended == []
    assert run.budget.spent() == pytest.approx(ample.budget.spent())


def test_a_second_look_that_time_ends_leaves_the_first(slow, tmp_path):
    """Once the detectors have learned from the test images they are slower than anyone could foresee."""
    again = tmp_path / "out" / "weights" / "pseudo"
    run = slow(1.0, predict_images=lambda side: 400 if again.is_dir() else 1, MODE="finetune", OVERRIDES=DEAREST)
    assert any("looks at" in line for line in run.ended)
    assert all(len(samples) == STUDIES for samples in run.seen.values())
    assert len(run.seen) == 8  # two detectors' two models, on images and on mirrored ones
    assert set(pd.read_csv(run.folder / "detections.csv")["model"]) <= {*run.seen, "ensemble"}
    assert run.by_priors == 0


def test_restart_trains_members_on_the_images_they_began_with(slow):
    """A model that began as a stage's only one stays it, also where there is time for others now."""
    settings = {"cache_size": 64, "members": 2, "folds": 2}
    first = slow(0.6, epoch=100, MODE="finetune", OVERRIDES=settings)
    assert any(line.startswith("fold ensemble") for line in first.dropped)
    samples = stage_models.member_images(first, "rcnn")[1]
    again = slow(99.0, MODE="finetune", OVERRIDES=settings)
    assert again.plan.models(["rcnn"]) == ["rcnn"]
    assert stage_models.member_images(again, "rcnn")[1]["image_id"].tolist() == samples["image_id"].tolist()


def test_several_gpus_are_told_the_time_of_their_own_step(monkeypatch, tmp_path):
    now, seen = Time(), []
    run = Run(tmp_path, TimeBudget(9.0, 0.0, now), mode="finetune", profile=PROFILE)
    run.plan = replace(REQUESTED, members=2)
    monkeypatch.setattr(stage_models.torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(stage_models.launch, "fit", lambda *given: seen.append(given[-1]))
    monkeypatch.setattr(stage_models, "member_images", lambda run, name: (run.preset, run.prepared_images))
    monkeypatch.setattr(stage_models, "offer", lambda *_: None)
    steps._train(run, "rcnn.1")
    forecast = time_budget.forecast(PROFILE, run.plan)
    assert seen == [run.budget.left() - time_budget.after("fit rcnn.1", forecast)]
