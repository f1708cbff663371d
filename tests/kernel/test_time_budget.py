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
from siimcovid.core.stage_names import DETECTORS, SUBMISSION_STAGES
from siimcovid.data import image_cache
from siimcovid.evaluation import submission_validator
from siimcovid.inference import predictor
from siimcovid.kernel import (
    lower_resolution,
    stage_models,
    step_forecast,
    step_profile,
    steps,
    time_budget,
    train_models,
)
from siimcovid.kernel.notebook_parameters import Parameters
from siimcovid.kernel.run import Run
from siimcovid.kernel.run_plan import RunPlan, apply_plan, dropped, fit_plan, plan_of_preset
from siimcovid.kernel.run_summary import summary
from siimcovid.kernel.step_forecast import Profile, StageProfile, forecast, seconds_after
from siimcovid.kernel.time_budget import TimeBudget
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
    assert forecast(PROFILE, REQUESTED) == {
        "prepare": 0.5 * 200,
        "fit rcnn": 10 + 10 * 100,
        "fit yolo": 10 + 20 * 50,
        "fit study": 10 + 40 * 1,
        "curves": step_forecast.PICTURES["curves"],
        "detect": 5 + 2 * 100 * 1 + 5 + 2 * 100 * 1,
        "classify": 5 + 100 * 0.1,
        "gallery": step_forecast.PICTURES["gallery"],
        "submit": 0,
        "score": 0,
        "figures": 0,
    }
    assert seconds_after("detect", forecast(PROFILE, REQUESTED)) == 15 + step_forecast.PICTURES["gallery"]
    half = replace(REQUESTED, scale={"rcnn": 0.5})
    assert forecast(PROFILE, half)["fit rcnn"] == (10 + 10 * 100) / 4


TOTAL = sum(forecast(PROFILE, REQUESTED).values())


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
    chosen = fit_plan(PROFILE, REQUESTED, available)
    assert (chosen.hflip_tta, chosen.epochs["rcnn"], chosen.scale.get("rcnn", 1.0), len(chosen.detectors)) == (
        hflip_tta, rcnn_epochs, scale, detectors,
    )  # fmt: skip
    if available > 1:
        assert sum(forecast(PROFILE, chosen).values()) <= available
    assert set(chosen.epochs) == set(chosen.stages)


def test_more_time_never_drops_more():
    lengths = [len(dropped(REQUESTED, fit_plan(PROFILE, REQUESTED, seconds))) for seconds in range(100, 3000, 25)]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] == 4
    assert lengths[-1] == 0


EVERYTHING = replace(REQUESTED, members=3, pseudo=2, detectors=("rcnn", "yolo", "retinanet"))
EVERYTHING = replace(EVERYTHING, epochs={**REQUESTED.epochs, "retinanet": 10})
DEARER = replace(PROFILE, train_images=200, stages={**PROFILE.stages, "retinanet": PROFILE.stages["rcnn"]})


def test_members_and_pseudo_labels_cost_what_they_are():
    seconds, single = (forecast(DEARER, plan) for plan in (EVERYTHING, replace(EVERYTHING, members=1)))
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
    assert "fine_tune_on_pseudo_labels" not in forecast(DEARER, replace(EVERYTHING, pseudo=0))


def test_the_dearest_for_the_least_goes_first():
    """Pseudo-labels, mirrored images, members one by one, epochs, resolution, detectors from the last to the first."""
    seen = []
    for seconds in range(30000, 50, -10):
        chosen = fit_plan(DEARER, EVERYTHING, seconds)
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
    least = fit_plan(DEARER, EVERYTHING, 100)
    assert dropped(EVERYTHING, least)[:3] == [
        "pseudo-labels: the detectors do not train on test images",
        "test-time augmentation: mirrored images are left out",
        "fold ensemble: 1 of 3 models of each stage",
    ]
    assert RunPlan.from_json(EVERYTHING.to_json()) == EVERYTHING


def test_further_study_models_go_before_epochs():
    two = replace(REQUESTED, study_models=2)
    assert two.models(two.stages) == ["rcnn", "yolo", "study", "study.1"]
    seconds, single = forecast(PROFILE, two), forecast(PROFILE, REQUESTED)
    assert seconds["fit study.1"] == single["fit study"]
    assert seconds["classify"] == 2 * single["classify"]
    seen = [fit_plan(PROFILE, two, available) for available in range(3000, 100, -5)]
    states = [(plan.hflip_tta, plan.study_models, plan.epochs == two.epochs) for plan in seen]
    assert list(dict.fromkeys(states))[:3] == [(True, 2, True), (False, 2, True), (False, 1, True)]
    assert dropped(two, fit_plan(PROFILE, two, 100))[1] == "study model: 1 of 2"
    assert RunPlan.from_json(two.to_json()) == two
    assert RunPlan.from_json({k: v for k, v in two.to_json().items() if k != "study_models"}).study_models == 1
    begun = replace(two, study_models=1, members_at_start={"study": 2})
    assert begun.models(["study"]) == ["study"]
    of_folds = load_preset("small", {"members": 2})  # a fold ensemble has a study model of each fold
    assert plan_of_preset(of_folds, ("yolo",), trained=True).models(["study"]) == ["study", "study.1"]
    assert plan_of_preset(of_folds, ("yolo",), trained=True).study_models == 1


def test_a_stage_is_tried_whatever_lies_in_its_models_place(tmp_path, monkeypatch):
    """Where that is of other settings, or one of several models, training costs something."""
    small = {"rcnn.training.epochs": 2, "yolo.training.epochs": 2, "study.training.epochs": 2, "cache_size": 64}
    small |= {f"{stage}.{side}": 64 for stage in SUBMISSION_STAGES for side in ("size", "infer_size")}
    write_competition(tmp_path / "competition", train_studies=8, test_studies=2, seed=1, scale=0.03)
    weights = write_weights(tmp_path / "weights", SUBMISSION_STAGES)
    trials = []

    def fit(run, name, preset, images, out, may_start_epoch, **options):
        trials.append(name)
        return fake_training(Time(), 8.0, weights)(name, preset, images, run.cache, None, out, may_start_epoch)

    monkeypatch.setattr(stage_models, "fit", fit)
    given = str(tmp_path / "competition"), str(weights), str(tmp_path / "out")
    run = steps.start(*given, "demo", "finetune", overrides=small)
    path = stage_models.own(run, "study")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((weights / "study.safetensors").read_bytes())
    steps.plan(run)
    assert run.degraded == []
    assert trials == ["rcnn", "yolo", "study"]
    assert all(measured.epoch > 0 for measured in run.planner.profile.stages.values())


def test_dropped_is_said():
    chosen = fit_plan(PROFILE, REQUESTED, 300)
    assert dropped(REQUESTED, chosen) == [
        "test-time augmentation: mirrored images are left out",
        f"training epochs: rcnn {chosen.epochs['rcnn']} of 10, study {chosen.epochs['study']} of 40",
        "resolution: 50% of the side in pixels",
        "detectors: yolo left out",
    ]


def test_a_stage_that_has_begun_keeps_its_settings():
    now = replace(REQUESTED, epochs={"rcnn": 7, "yolo": 20, "study": 40}, scale={"rcnn": 0.75}, batch={"rcnn": 2})
    for available in (1e9, 300):
        chosen = fit_plan(PROFILE, REQUESTED, available, now, {"rcnn"})
        assert (chosen.epochs["rcnn"], chosen.scale["rcnn"], chosen.batch) == (7, 0.75, {"rcnn": 2})
    assert fit_plan(PROFILE, REQUESTED, 1e9, now, {"rcnn"}).epochs["yolo"] == 20


def test_steps_that_are_done_take_no_time():
    done = ["prepare", "fit rcnn", "fit yolo", "fit study"]
    assert fit_plan(PROFILE, REQUESTED, 450, done=done) == REQUESTED


def test_choices_survive_json():
    chosen = fit_plan(PROFILE, REQUESTED, 400)
    assert RunPlan.from_json(json.loads(json.dumps(chosen.to_json()))) == chosen
    for damaged in (None, {}, {**chosen.to_json(), "epochs": [1]}, {**chosen.to_json(), "scale": {"rcnn": "wide"}}):
        with pytest.raises(InputError, match=r"run\.json"):
            RunPlan.from_json(damaged)


def test_a_lower_resolution_keeps_anchors_on_the_image_and_sides_on_the_strides():
    """Trained at half the side, every detector's anchors have half theirs; a P6 architecture has cells of 64 pixels."""
    preset = load_preset("demo", {"yolo.architecture": "hub/yolov5n6", "yolo.backbone": ""})
    plan = RunPlan(False, DETECTORS, scale=dict.fromkeys((*DETECTORS, "study"), 0.75))
    changed = apply_plan(preset, plan)
    for name in ("rcnn", "retinanet"):
        sides = [round(0.75 * side) for side in getattr(preset, name).anchor_sides]
        assert list(getattr(changed, name).anchor_sides) == sides
    assert changed.yolo.size == changed.yolo.infer_size == 192  # of 256
    smaller = apply_plan(
        load_preset("demo", {"yolo.architecture": "hub/yolov5n6", "yolo.backbone": "", "yolo.size": 320}), plan
    )
    assert smaller.yolo.size == 192  # not 240 or 224
    given = lower_resolution.inference_changes(preset.rcnn, 0.5)
    assert given == {"infer_size": preset.rcnn.infer_size // 2}  # a trained model keeps its anchors


def planned(tmp_path, **epochs) -> tuple[Run, Time]:
    """A run of an hour whose plan is REQUESTED and whose seconds are PROFILE's."""
    now = Time()
    run = Run(Parameters(tmp_path, mode="finetune"), TimeBudget(1.0, 0.0, now))
    run.planner.profile, run.planner.plan = PROFILE, replace(REQUESTED, epochs=epochs or REQUESTED.epochs)
    return run, now


def test_an_epoch_costs_what_passes_between_two_questions(tmp_path):
    """Ten seconds of training steps, sixty of validation behind them: the loop tells of the ten alone."""
    run, now = planned(tmp_path)
    run.planner.profile = replace(PROFILE, stages={**PROFILE.stages, "study": StageProfile(epoch=70, validation=60)})
    later = run.planner.seconds_after("fit study")
    ask = train_models.time_for_another_epoch(run, "fit study", "study")
    now.seconds = run.budget.left() - later - 160
    assert ask(10)  # the first question: the plan's 70
    now.seconds += 70
    assert ask(10)  # 90 are left, and 70 passed
    now.seconds += 70
    assert not ask(10)  # 20 are left
    assert run.record.ended == ["training of study ends before its last epoch"]
    assert train_models.seconds_for_processes(run, "fit study", "study") == run.budget.left() - later - 60


def test_pseudo_labels_on_several_gpus_leave_time_for_the_second_pass(tmp_path):
    run, _ = planned(tmp_path)
    free = train_models.seconds_for_processes(run, train_models.PSEUDO, "rcnn")
    assert train_models.seconds_for_processes(run, train_models.PSEUDO, "rcnn", 300.0) == free - 300


def test_the_reserve_pays_for_predictions_alone(tmp_path):
    """Training overran: nothing is left but the reserve, of which the study model's pass is kept for it."""
    run, now = planned(tmp_path)
    now.seconds = 3600 * (1 - time_budget.RESERVE) + 1
    assert not run.has_time("fit study")
    assert run.has_time("detect")
    assert run.has_time("classify")
    assert not run.has_time_to_spare("detect")
    kept = PROFILE.stages["study"].load + 100 * PROFILE.stages["study"].image
    now.seconds = 3600 * (1 - time_budget.LAST) - kept
    assert not run.has_time("detect")
    assert run.has_time("classify")


def test_a_slower_pass_makes_later_ones_dearer_and_a_faster_one_does_not(tmp_path):
    run, _ = planned(tmp_path)
    run.planner.correct("rcnn", 3.0, {"study", "yolo"})
    assert {s: p.image for s, p in run.planner.profile.stages.items()} == pytest.approx(
        {"rcnn": 3.0, "yolo": 3.0, "study": 0.3}
    )
    run.planner.correct("yolo", 1.5, {"study"})
    assert run.planner.profile.stage("study").image == pytest.approx(0.3)
    assert run.planner.profile.stage("yolo").image == 1.5


def test_training_that_took_longer_makes_further_models_of_its_stage_dearer(tmp_path):
    run, _ = planned(tmp_path, rcnn=10, yolo=20, study=40)
    run.planner.correct_training("study", 8 * (10 + 40 * 1))
    assert run.planner.profile.stage("study") == StageProfile(once=80, epoch=8, load=5, image=0.1)
    run.planner.correct_training("rcnn", 1.0)  # it was finished by an earlier run
    assert run.planner.profile.stage("rcnn") == PROFILE.stages["rcnn"]


def test_a_model_that_predicts_at_half_the_side_takes_a_quarter_of_the_time(tmp_path):
    run, _ = planned(tmp_path)
    before, side = PROFILE.stages["rcnn"], run.preset.rcnn.infer_size
    run.planner.predict_at("rcnn", side)
    assert run.planner.profile.stage("rcnn") == before
    for _ in range(2):  # each model of a stage says so
        run.planner.predict_at("rcnn", side // 2)
        assert run.planner.profile.stage("rcnn") == replace(before, image=before.image / 4)


def test_a_stage_that_could_not_be_measured_is_not_free():
    small = load_preset("demo", {"study.infer_size": 512, "rcnn.infer_size": 256, "yolo.infer_size": 256})
    others = replace(PROFILE, stages={s: PROFILE.stages[s] for s in ("rcnn", "yolo")})
    guess = step_forecast.guess_stage("study", others, small, True, False)
    assert guess == StageProfile(once=40, epoch=400, load=20, image=4)  # the dearest, for four times the pixels
    nothing = replace(PROFILE, stages={}, train_images=1000)
    full = load_preset("full")
    rcnn, on_gpu = (step_forecast.guess_stage("rcnn", nothing, full, True, gpu) for gpu in (False, True))
    assert rcnn.image == pytest.approx(20 * 1.024**2)  # 20 s a million pixels, at 1024 x 1024
    assert rcnn.epoch > 1000 * 3 * 20 * 0.512**2
    assert on_gpu.image == pytest.approx(rcnn.image / step_forecast.GPU_FACTOR)
    assert step_forecast.guess_stage("study", nothing, full, False, False).epoch == 0


@pytest.mark.parametrize("name", ["full", "demo"])
def test_choices_change_the_preset(name):
    preset = load_preset(name)
    requested = plan_of_preset(preset, DETECTORS, True)
    assert apply_plan(preset, requested) == preset
    chosen = replace(
        requested, hflip_tta=False, epochs={"yolo": 3}, scale={"rcnn": 0.5, "study": 0.75}, batch={"yolo": 1}
    )
    changed = apply_plan(preset, chosen)
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
    write_weights(top / "weights", SUBMISSION_STAGES)
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
            stage,
            config,
            model,
            images,
            folder,
            hflip=False,
            device=None,
            may_go_on=lambda: True,
            change=None,
            **options,
        ):
            def go_on() -> bool:
                now.seconds += predict_images(config.infer_size)
                return may_go_on()

            return real_look(stage, config, model, images, folder, hflip, device, go_on, change, **options)

        monkeypatch.setattr(image_cache, "prepare", slow_prepare)
        monkeypatch.setattr(predictor, "predict_images", slow_look)
        monkeypatch.setattr(step_profile, "predict_images", slow_look)
        monkeypatch.setattr(train_stage, "fit", fake_training(now, epoch, material / "weights"))
        monkeypatch.setattr(stage_models, "read", read_once)
        out, given, now.seconds = tmp_path / "out", material / "competition", 0.0
        defaults = {"COMPETITION_DIR": str(given), "WEIGHTS_DIR": str(material / "weights"), "OUTPUT_DIR": str(out)}
        defaults |= {
            "PRESET": "demo",
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

    def fit(stage, preset, images, folder, start, out, may_start_epoch=lambda seconds: True, **options):
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
    assert run.record.dropped == run.record.ended == []
    assert set(run.predictions.predicted) == {"rcnn", "yolo", "rcnn_hflip", "yolo_hflip"}
    assert run.record.by_priors == 0


def test_slow_disk_leaves_images_out_and_time_for_the_rest(slow):
    """Eight images of 200 s do not fit into eighteen minutes."""
    run = slow(0.3, image=200)
    assert 0 < len(run.test) < STUDIES
    assert run.budget.spent() <= 0.3 * 3600
    assert f"preparation: {STUDIES - len(run.test)} of {STUDIES} images are left out" in run.record.ended
    assert 0 < run.record.by_priors < 2 * STUDIES
    assert "the time or the disk did not suffice" in summary(run)


#: Pictures take no time on the fake clock.
PICTURES = step_forecast.PICTURES["gallery"] + step_forecast.PICTURES["figures"]


#: Each model takes 10 s an image. Measuring takes 60 s, four passes of detectors 320, the study model 80, pictures 5.
@pytest.mark.parametrize(
    ("seconds", "dropped", "passes"), [(470, 0, 4), (460, 1, 2), (300, 2, 2), (180, 2, 2), (120, 3, 1)]
)
def test_slow_models_drop_flips_then_resolution_then_a_detector(slow, seconds, dropped, passes):
    run = slow(seconds / 3600 / (1 - time_budget.RESERVE), predict_images=lambda side: 10 * (side / SIDE) ** 2)
    assert len(run.record.dropped) == dropped, run.record.dropped
    assert len(run.predictions.predicted) == passes
    assert run.budget.spent() <= run.budget.hours * 3600
    assert run.record.by_priors == 0
    spare = run.record.seconds.get(
        "shortcuts", 0.0
    )  # that check is not planned: it takes what is left over, or is left out
    assert run.record.predicted_total == pytest.approx(run.budget.spent() - spare + PICTURES, rel=0.01)


def test_models_slower_than_measured_are_stopped_by_the_clock(slow):
    """The first images take a second, all others twenty: what was measured fits, and what happens does not."""
    times = iter([1.0] * 12)
    run = slow(0.07, predict_images=lambda side: next(times, 20.0))
    assert any("predicts" in line for line in run.record.ended)
    assert run.budget.spent() <= 0.07 * 3600
    assert 0 < run.record.by_priors < 2 * STUDIES
    detections = pd.read_csv(run.folder / "detections.csv")
    assert set(detections["image_id"]) <= {name for samples in run.predictions.predicted.values() for name in samples}


def test_a_stage_whose_trial_fails_is_planned_for(slow, monkeypatch):
    """Its steps cost what the dearest of the others costs, instead of nothing; the study model is not starved."""
    real = step_profile._stage

    def broken(run, stage, test):
        if stage == "yolo":
            raise RuntimeError("the trial failed")
        return real(run, stage, test)

    monkeypatch.setattr(step_profile, "_stage", broken)
    monkeypatch.setattr(Run, "degraded", [])  # `slow` wants a run without faults
    run = slow(0.1, predict_images=lambda side: 10 * (side / SIDE) ** 2)
    assert run.recovery.degraded[0]["reason"] == "the trial failed"
    assert run.planner.profile.stage("yolo").image == pytest.approx(10, rel=0.2)
    assert len(run.record.dropped) >= 1
    assert run.record.by_priors == 0
    assert run.budget.spent() <= run.budget.hours * 3600


@pytest.mark.slow
def test_slow_training_gets_fewer_epochs(slow):
    requested = {f"{stage}.training.epochs": 10 for stage in SUBMISSION_STAGES}
    run = slow(1.0, epoch=100, MODE="finetune", OVERRIDES={"cache_size": 64, **requested})
    assert run.budget.spent() <= 3600
    assert any(line.startswith("training epochs") for line in run.record.dropped)
    epochs = [len(json.loads((run.folder / "weights" / f"{s}.json").read_text())["epochs"]) for s in run.plan.stages]
    assert all(0 < count < 10 for count in epochs)
    assert run.record.by_priors == 0


def test_spent_budget_still_submits(slow):
    run = slow(1.0, STARTED=-3600.0)
    assert run.record.by_priors == 2 * STUDIES
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
    planned = ample.budget.spent() + PICTURES + step_forecast.PICTURES["curves"]
    run = slow(1.02 * planned / 3600 / (1 - time_budget.RESERVE), OUTPUT_DIR=str(tmp_path / "tight"), **given)
    assert run.record.dropped == run.record.ended == []
    assert run.budget.spent() == pytest.approx(ample.budget.spent())


def test_a_second_look_that_time_ends_leaves_the_first(slow, tmp_path):
    """Once the detectors have learned from the test images they are slower than anyone could foresee."""
    again = tmp_path / "out" / "weights" / "pseudo"
    run = slow(1.0, predict_images=lambda side: 400 if again.is_dir() else 1, MODE="finetune", OVERRIDES=DEAREST)
    assert any("predicts" in line for line in run.record.ended)
    assert all(len(samples) == STUDIES for samples in run.predictions.predicted.values())
    assert len(run.predictions.predicted) == 8  # two detectors' two models, on images and on mirrored ones
    assert set(pd.read_csv(run.folder / "detections.csv")["model"]) <= {*run.predictions.predicted, "ensemble"}
    assert run.record.by_priors == 0


def test_restart_trains_members_on_the_images_they_began_with(slow):
    """A model that began as a stage's only one stays it, also where there is time for others now."""
    settings = {"cache_size": 64, "members": 2, "folds": 2}
    first = slow(0.6, epoch=100, MODE="finetune", OVERRIDES=settings)
    assert any(line.startswith("fold ensemble") for line in first.record.dropped)
    samples = stage_models.member_images(first, "rcnn")[1]
    again = slow(99.0, MODE="finetune", OVERRIDES=settings)
    assert again.plan.models(["rcnn"]) == ["rcnn"]
    assert stage_models.member_images(again, "rcnn")[1]["image_id"].tolist() == samples["image_id"].tolist()


def test_several_gpus_are_told_the_time_of_their_own_step(monkeypatch, tmp_path):
    now, seen = Time(), []
    run = Run(Parameters(tmp_path, mode="finetune"), TimeBudget(9.0, 0.0, now))
    run.planner.profile, run.planner.plan = PROFILE, replace(REQUESTED, members=2)
    monkeypatch.setattr(stage_models, "training_processes", lambda: 2)
    monkeypatch.setattr(stage_models.multi_gpu, "fit", lambda *given, **options: seen.append(given[-1]) or Path())
    monkeypatch.setattr(stage_models, "identity", lambda run, name: {})
    monkeypatch.setattr(stage_models, "member_images", lambda run, name: (run.preset, run.prepared_images))
    monkeypatch.setattr(stage_models, "offer", lambda *_: None)
    train_models._train(run, "rcnn.1")
    assert seen == [run.budget.left() - seconds_after("fit rcnn.1", forecast(PROFILE, run.plan))]
