"""The sessions of a week: the hours of `best` are its table's, no epoch is lost or run twice, no GPU does two jobs."""

import itertools
import json
from collections import defaultdict
from dataclasses import replace

import pytest

from siimcovid.apps.command_line import main
from siimcovid.core.errors import InputError
from siimcovid.core.overrides import override
from siimcovid.core.presets import load_preset
from siimcovid.core.stage_names import stage_of
from siimcovid.kernel import gpu_throughput, queue_forecast, session_jobs, week_schedule
from siimcovid.kernel.gpu_throughput import Throughput
from siimcovid.kernel.replanning import Planner
from siimcovid.kernel.session_jobs import Job
from siimcovid.kernel.step_forecast import Profile, StageProfile
from siimcovid.kernel.week_schedule import Limits, Schedule

BEST = load_preset("best")
SPEED = gpu_throughput.estimates(BEST)
WEEK = Limits()


def planned(limits=WEEK, preset=BEST, speed=SPEED) -> Schedule:
    return week_schedule.plan(preset, speed, limits)


def test_the_hours_are_those_of_the_table():
    """Five folds of 4,900 images: 4.9, 10.2 and 9.1 GPU hours; sessions of 4, 7 and 7 hours; 1.7 hours of inference."""
    schedule = planned()
    hours = {stage: round(value, 1) for stage, value in schedule.gpu_hours().items()}
    assert hours == {"study": 4.9, "yolo": 10.2, "rcnn": 9.1}
    pretraining, *training, submission = schedule.sessions
    assert pretraining.hours == pytest.approx(4, abs=0.5)
    assert len(training) == 2
    for session in training:
        assert session.hours - 0.1 <= 7 <= session.setting + 0.1  # without and with the reserve
    assert sum(s.hours for s in (pretraining, *training)) == pytest.approx(18, abs=0.5)
    assert submission.hours == pytest.approx(1.7, abs=0.1)
    assert not schedule.left


CASES = [
    Limits(),
    Limits(gpus=1, sessions=6),
    Limits(gpus=4, sessions=3),
    Limits(hours=5, sessions=8),
    Limits(pretrains=False, sessions=3),
    Limits(images=500, sessions=3),
]


@pytest.mark.parametrize("limits", CASES)
def test_every_epoch_runs_once_and_no_gpu_does_two_things_at_a_time(limits):
    schedule, ran = planned(limits), defaultdict(list)
    assert not schedule.left
    assert len(schedule.sessions) == limits.sessions
    for session in schedule.sessions:
        busy = defaultdict(list)
        for entry in session.entries:
            assert entry.begin <= entry.end <= limits.usable + 1e-9
            busy[entry.place].append((entry.begin, entry.end))
            if entry.epochs:
                ran[entry.job, entry.data].append(entry.epochs)
        assert len([place for place in busy if place.startswith("GPU")]) <= limits.gpus
        for spans in busy.values():
            spans.sort()
            assert all(one[1] <= other[0] + 1e-9 for one, other in itertools.pairwise(spans))
    wanted = {(job.name, "the competition"): job.epochs for job in schedule.jobs}
    if limits.pretrains:
        wanted |= {("backbone", "NIH"): 6, ("rcnn", "RSNA"): 10, ("yolo", "RSNA"): 15}
    assert len(schedule.jobs) == 15
    assert set(ran) == set(wanted)
    for name, parts in ran.items():
        ends = [0, *(last for _, last, _ in parts)]
        assert [first for first, _, _ in parts] == [end + 1 for end in ends[:-1]]
        assert ends[-1] == wanted[name] == parts[0][2]


def test_what_is_paused_and_ready_adds_up():
    schedule = planned()
    first, second = schedule.sessions[1:3]
    assert first.paused == ("rcnn.2", "yolo.2")
    assert set(first.ready) == {"rcnn", "yolo", "study", "rcnn.1", "yolo.1", "study.1"}
    assert (len(second.ready), second.paused) == (15, ())
    assert schedule.sessions[-1].mounts == ("the competition", "the output of session 2", "the output of session 3")


def test_hours_grow_with_images_and_shrink_with_speed():
    whole, half = planned().gpu_hours(), planned(Limits(images=session_jobs.ANNOTATED_IMAGES // 2)).gpu_hours()
    assert {s: half[s] / whole[s] for s in whole} == pytest.approx(dict.fromkeys(whole, 0.5), rel=1e-3)
    slow = {stage: Throughput(one.train / 2, one.predict / 2) for stage, one in SPEED.items()}
    assert planned(speed=slow).left > 0
    assert not planned(Limits(sessions=7), speed=slow).left  # twice the time: twice as many before the last


def test_the_queue_takes_the_first_of_each_stage_first_and_the_longest_of_those():
    jobs = session_jobs.fold_jobs(BEST, SPEED, session_jobs.ANNOTATED_IMAGES)
    assert [job.name for job in jobs[:4]] == ["yolo", "rcnn", "study", "yolo.1"]


def test_a_job_pauses_between_epochs_and_one_that_is_too_long_leaves_the_gpu_to_another():
    jobs = [Job("yolo", "", 1.0, 4), Job("rcnn", "", 3.0, 2), Job("study", "", 0.5, 2)]
    entries, left = session_jobs.fill(jobs, 1, 0.0, 3.9)
    assert [(e.job, e.epochs) for e in entries] == [("yolo", (1, 3, 4)), ("study", (1, 1, 2))]
    assert [(job.name, job.done) for job in left] == [("yolo", 3), ("rcnn", 0), ("study", 1)]


def test_frozen_features_are_computed_once_and_a_held_out_fold_is_predicted_every_epoch():
    small = load_preset("demo", {"members": 1})
    speed = dict.fromkeys(("rcnn", "yolo", "study"), Throughput(10.0, 50.0))
    jobs = {job.name: job for job in session_jobs.fold_jobs(small, speed, 1000)}
    assert jobs["study"].hours * 3600 == pytest.approx(1000 * small.study.views / 50)
    assert jobs["rcnn"].hours * 3600 == pytest.approx(1000 * small.rcnn.training.epochs / 10)
    validates = override(small, {"rcnn.training.validate": True})
    jobs = {job.name: job for job in session_jobs.fold_jobs(validates, speed, 1000)}
    assert jobs["rcnn"].epoch * 3600 == pytest.approx(800 / 10 + 200 / 50)
    twice = override(validates, {"rcnn.infer_size": 2 * small.rcnn.size})  # the fold is predicted at both sizes
    jobs = {job.name: job for job in session_jobs.fold_jobs(twice, speed, 1000)}
    assert jobs["rcnn"].epoch * 3600 == pytest.approx(800 / 10 + 200 * (1 + 1 / 4) / 50)


@pytest.mark.parametrize(
    ("ready", "models"), [(["rcnn", "yolo", "study"], 3), (["rcnn", "yolo", "study", "study.1"], 4), (["rcnn"], 0)]
)
def test_every_study_model_predicts_the_fold_held_out(ready, models):
    small = load_preset("small", {"study_models": 2, "fusion.hflip_tta": False, "study.hflip_tta": False})
    speed = dict.fromkeys(("rcnn", "yolo", "study"), Throughput(10.0, 50.0))
    hours = week_schedule._fitting_hours(small, speed, ready, 1000)
    assert hours * 3600 == pytest.approx(models * 1000 // small.folds / 50)


def profile(tmp_path, preset="best", **stages) -> str:
    facts = {"train_images_per_second": 12.0, "predict_images_per_second": 30.0, "batch": 4}
    sides = {
        stage: {"size": getattr(BEST, stage).size, "infer_size": getattr(BEST, stage).infer_size} for stage in SPEED
    }
    measured = {stage: facts | sides[stage] | changes for stage, changes in stages.items()}
    path = tmp_path / "profile.json"
    path.write_text(json.dumps({"preset": preset, "machine": {}, "stages": measured, "plan": None}))
    return path


def test_a_profile_takes_the_place_of_estimates(tmp_path, capsys):
    path = profile(tmp_path, rcnn={"size": 384}, yolo={"error": "no kernel image"}, study={})
    speed = gpu_throughput.with_profile(SPEED, path, BEST)
    assert speed["rcnn"] == Throughput(12.0 / 4, 30.0, True)  # four times the area
    assert speed["yolo"] == SPEED["yolo"]
    assert speed["study"] == Throughput(12.0, 15.0, True)  # an image and its mirror image
    assert speed["backbone"].train == pytest.approx(12.0 * (512 / 384) ** 2)
    assert main(["plan", "best", "--profile", str(path), "--sessions", "9"]) == 0
    printed = capsys.readouterr().out
    assert "measured" in printed
    assert "estimates" in printed


def test_the_command_says_what_is_an_estimate_and_what_has_no_place(capsys):
    assert main(["plan", "best", "--gpus", "2", "--hours", "9", "--sessions", "4"]) == 0
    printed = capsys.readouterr().out
    assert "Hours from estimated speeds are estimates" in printed
    assert "Session 3: attach the competition, the output of session 1, the output of session 2." in printed
    assert "make kaggle PRETRAIN=1 PRESET=best WEIGHTS=FOLDER; make push PRETRAIN=1" in printed
    assert "make kaggle SESSION=2 SESSIONS=2 PRESET=best WEIGHTS=FOLDER; make push SESSION=2" in printed
    assert "siimcovid weights import efficientnet_v2_m|yolov5l" in printed
    assert "make kaggle SESSION=2 SESSIONS=2 PRESET=best" in printed
    assert main(["plan", "best", "--gpus", "1", "--sessions", "3"]) == 1
    assert "GPU hours of training find no place" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "said"),
    [("{}", "KeyError"), ("[1]", "TypeError"), ('{"stages": {}}', "measured no stage"), ("{", "no prof")],
)
def test_a_damaged_profile_is_refused(tmp_path, text, said):
    path = tmp_path / "profile.json"
    path.write_text(text)
    with pytest.raises(InputError, match=said):
        gpu_throughput.with_profile(SPEED, path, BEST)


def test_refuses_another_presets_profile_too_few_sessions_and_hours(tmp_path):
    with pytest.raises(InputError, match="was measured with preset 'demo', not 'best'"):
        gpu_throughput.with_profile(SPEED, profile(tmp_path, "demo", rcnn={}), BEST)
    with pytest.raises(InputError, match="2 sessions are too few: 1 for pretraining"):
        planned(Limits(sessions=2))
    with pytest.raises(InputError, match="no epoch of pretraining fits into a session"):
        planned(Limits(hours=0.5))
    assert main(["plan", "best", "--gpus", "0"]) == 2


def costs(trained: dict[str, int]) -> Profile:
    """What the kernel would measure on two T4s if the estimates were right; model -> epochs that are trained."""
    whole_machine = queue_forecast.GPU_GAIN / 2  # of the seconds on one GPU
    stages = {
        stage: StageProfile(epoch=whole_machine * 4900 / SPEED[stage].train, image=1 / SPEED[stage].predict)
        for stage in BEST.stages
    }
    images = session_jobs.TRAIN_IMAGES + session_jobs.VISIBLE_IMAGES
    machine = queue_forecast.Machine(cores=session_jobs.PROCESSORS, gpus=2)
    measured = Profile(
        prepare=session_jobs.PREPARE / session_jobs.PROCESSORS,
        to_prepare=images,
        stages=stages,
        test_images=session_jobs.VISIBLE_IMAGES,
        train_images=session_jobs.TRAIN_IMAGES,
        machine=machine,
    )
    return replace(measured, trained=trained)


def test_nine_hours_with_these_costs_drop_nothing():
    """In no session: not of the first, which cannot end the queue, nor of the last, whose steps all fit."""
    available, forecast = 3600 * WEEK.usable, []
    for session in planned().sessions[1:3]:
        before = planned().sessions[session.number - 2]
        trained = {name: getattr(BEST, stage_of(name)).training.epochs for name in before.ready}
        last = {e.job: e.epochs[1] for e in before.entries if e.epochs and before.kind == "training"}
        planner = Planner(BEST, True, True, costs(last | trained if before.kind == "training" else {}))
        planner.revise(available, ())
        assert planner.dropped() == []
        assert planner.plan.jobs == 2
        forecast.append(sum(planner.forecast().values()))
    assert forecast[0] > available >= forecast[1]
    predicts = Planner(BEST, False, False, replace(costs({}), test_images=session_jobs.HIDDEN_IMAGES))
    predicts.revise(available, ())
    assert predicts.dropped() == []
    single = Planner(BEST, True, False, costs({}))
    single.revise(available, ())
    assert single.dropped() != []  # one session is not enough


def test_predicted_once_or_twice():
    assert [gpu_throughput.passes(BEST, stage) for stage in ("rcnn", "yolo", "study")] == [2, 2, 1]
    plain = replace(BEST, fusion=replace(BEST.fusion, hflip_tta=False))
    assert gpu_throughput.passes(plain, "rcnn") == 1
