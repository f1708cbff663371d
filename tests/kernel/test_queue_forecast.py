"""How long trainings take side by side, and when the plan trains them so."""

import json
from dataclasses import replace

import pytest

from siimcovid.core.presets import DEMO, load_preset
from siimcovid.kernel.queue_forecast import (
    CPU_GAIN,
    GPU_GAIN,
    QUEUE,
    START,
    Machine,
    in_order,
    is_training,
    jobs_to_try,
    latest_end,
    of_queue,
    queue_seconds,
)
from siimcovid.kernel.replanning import Planner
from siimcovid.kernel.run_plan import RunPlan, fit_plan, plan_of_preset
from siimcovid.kernel.run_record import RunRecord
from siimcovid.kernel.step_forecast import Profile, StageProfile, forecast, model_seconds, seconds_after, waits_for

#: Ten epochs each: 1000, 600 and 500 s with the whole machine.
PLAN = RunPlan(False, ("rcnn", "yolo"), {"rcnn": 10, "yolo": 10, "study": 10})
STAGES = {"rcnn": StageProfile(epoch=100), "yolo": StageProfile(epoch=60), "study": StageProfile(epoch=50)}
TWO_CORES = Machine(cores=2)
PROFILE = Profile(stages=STAGES, test_images=100, machine=TWO_CORES)


@pytest.mark.parametrize(
    ("machine", "jobs", "slowdown"),
    [
        (Machine(), 1, 1.0),
        (TWO_CORES, 1, 1.0),
        (TWO_CORES, 2, 2 / 1 / CPU_GAIN),
        (Machine(cores=4), 2, 4 / 2 / CPU_GAIN),
        (Machine(cores=4), 3, 4 / 1 / CPU_GAIN),
        (Machine(cores=4, gpus=2), 2, 2 / GPU_GAIN),
    ],
)
def test_a_place_is_slower_than_the_machine(machine, jobs, slowdown):
    assert machine.slowdown(jobs) == pytest.approx(slowdown)


@pytest.mark.parametrize(
    ("seconds", "busy", "ends"),
    [
        ([], [5, 5], 0),  # of those that begin; who is busy does not count
        ([4, 3, 2], [0, 0], 5),
        ([2, 3, 4], [0, 0], 6),
        ([4, 3, 2], [0], 9),
        ([1], [3, 7], 4),
    ],
)
def test_each_begins_as_soon_as_a_place_is_free(seconds, busy, ends):
    assert queue_seconds(seconds, busy) == ends


@pytest.mark.parametrize(
    ("left", "busy", "waiting", "end"),
    [
        (100, [], [], 100),
        (100, [], [30, 20], 50),  # one place: those that wait come behind it
        (100, [0], [60, 40], 100),  # the other place does both
        (100, [0], [60, 60], 40),
        (100, [90], [30], 70),
        (100, [900], [30], 70),  # a training that has overrun leaves its place to nobody
        (100, [0], [70, 70, 70], 0),  # there is no time for all of them
        (-5, [0], [], 0),
    ],
)
def test_a_training_leaves_time_for_those_that_wait(left, busy, waiting, end):
    assert latest_end(left, busy, waiting) == pytest.approx(end, abs=0.2)


def test_the_first_members_first_and_the_longest_of_them():
    seconds = {"rcnn": 5, "yolo": 7, "study": 1, "rcnn.1": 9, "yolo.1": 7, "study.10": 3}
    assert in_order(seconds) == ["yolo", "rcnn", "study", "rcnn.1", "yolo.1", "study.10"]


@pytest.mark.parametrize(
    ("machine", "models", "asked", "numbers"),
    [
        (TWO_CORES, 3, 0, [1, 2]),
        (Machine(cores=8), 3, 0, [1, 2, 3]),
        (TWO_CORES, 1, 0, [1]),
        (Machine(), 3, 0, [1]),
        (Machine(cores=8, gpus=1), 3, 0, [1]),
        (Machine(cores=4, gpus=4), 15, 0, [1, 4]),  # one on each GPU, or one on all
        (TWO_CORES, 3, 1, [1]),
        (TWO_CORES, 3, 5, [2]),
        (TWO_CORES, 0, 2, [1]),
    ],
)
def test_how_many_at_a_time_come_into_question(machine, models, asked, numbers):
    assert list(jobs_to_try(machine, [f"rcnn.{k}" for k in range(models)], asked)) == numbers


def test_a_queue_is_one_step_of_the_forecast():
    seconds = forecast(PROFILE, replace(PLAN, jobs=2))
    # the longest begins first, the two others are done in the other place
    assert seconds[QUEUE] == pytest.approx(1100 * 2 / CPU_GAIN + 2 * START)
    assert [step for step in seconds if is_training(step)] == [QUEUE]
    assert [step for step in forecast(PROFILE, PLAN) if is_training(step)] == ["fit rcnn", "fit yolo", "fit study"]
    assert seconds_after(QUEUE, seconds) == sum(v for step, v in seconds.items() if step not in ("prepare", QUEUE))
    done = replace(PROFILE, trained={"rcnn": 10, "yolo": 5})
    assert model_seconds(done, PLAN) == {"rcnn": 0, "yolo": 300, "study": 500}
    assert of_queue(model_seconds(done, PLAN), TWO_CORES, 2) == pytest.approx(500 * 2 / CPU_GAIN + START)


def test_a_detector_waits_for_the_study_model_whose_backbone_it_starts_from():
    """The study model is trained first, with all cores, then both detectors side by side."""
    preset = load_preset("demo", {"rcnn.study_backbone": True, "yolo.study_backbone": True})
    plan = replace(plan_of_preset(preset, ("rcnn", "yolo"), True), epochs=PLAN.epochs)
    assert plan.stages == ("study", "rcnn", "yolo")
    assert RunPlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    assert [step for step in forecast(PROFILE, plan) if is_training(step)] == ["fit study", "fit rcnn", "fit yolo"]
    assert waits_for(replace(plan, members=2))["rcnn.1"] == "study.1"
    together = forecast(PROFILE, replace(plan, jobs=2))[QUEUE]
    assert together == pytest.approx(500 + 1000 * 2 / CPU_GAIN + 2 * START)
    assert fit_plan(PROFILE, plan, 1e9).jobs == 2
    assert plan_of_preset(preset, ("rcnn", "yolo"), False).stages == ("rcnn", "yolo", "study")
    one = {"rcnn": 4.0, "yolo": 3.0, "study": 1.0}
    assert in_order(one, {"yolo": "study"}) == ["study", "rcnn", "yolo"]


@pytest.mark.parametrize(
    ("rcnn", "machine", "trained", "jobs"),
    [
        (100, TWO_CORES, {}, 2),
        (900, TWO_CORES, {}, 1),  # the longest would take longer on one core than all on both
        (100, Machine(), {}, 1),
        (100, TWO_CORES, {"rcnn": 10, "yolo": 10}, 1),  # a single one is left
        (0.1, TWO_CORES, {"study": 10}, 1),  # starting a process takes longer
        (110, Machine(gpus=2), {}, 2),
        (200, Machine(gpus=2), {}, 1),
    ],
)
def test_the_plan_takes_what_is_sooner(rcnn, machine, trained, jobs):
    profile = replace(PROFILE, stages={**STAGES, "rcnn": StageProfile(epoch=rcnn)}, machine=machine, trained=trained)
    plan = replace(PLAN, epochs={**PLAN.epochs, "yolo": 10 if rcnn > 1 else 1})
    assert fit_plan(profile, plan, 1e9).jobs == jobs
    totals = {k: sum(forecast(profile, replace(plan, jobs=k)).values()) for k in (1, 2)}
    assert jobs == 1 or totals[2] < totals[1]
    assert fit_plan(profile, plan, 1e9, jobs=1).jobs == 1


def test_side_by_side_less_is_dropped():
    """Between what the queue takes and what one after the other take, nothing is dropped."""
    seconds = {jobs: sum(forecast(PROFILE, replace(PLAN, jobs=jobs)).values()) for jobs in (1, 2)}
    between = sum(seconds.values()) / 2
    assert fit_plan(PROFILE, PLAN, between) == replace(PLAN, jobs=2)
    assert fit_plan(PROFILE, PLAN, between, jobs=1).epochs["rcnn"] < 10


def test_the_number_stays_once_training_has_begun():
    """Also over a restart: the weights' bytes depend on the number of threads."""
    for jobs in (1, 2):
        now = replace(PLAN, jobs=jobs)
        assert fit_plan(PROFILE, PLAN, 1e9, now, {"rcnn"}).jobs == jobs
        again = Planner(DEMO, True)
        again.resume(RunPlan.from_json(json.loads(json.dumps(now.to_json()))), {"rcnn"})
        again.profile = replace(PROFILE, machine=TWO_CORES)
        again.revise(1e9, ())
        assert again.plan.jobs == jobs
    old = {key: value for key, value in PLAN.to_json().items() if key != "jobs"}
    assert RunPlan.from_json(old) == PLAN


def test_models_that_are_done_or_run_take_no_more_of_the_plan():
    planner = Planner(DEMO, True, profile=PROFILE)
    planner.revise(1e9, ())
    assert planner.plan.jobs == 2
    planner.lock("rcnn")
    planner.take_as_trained(["rcnn", "yolo"])
    epochs = planner.plan.epochs["study"]
    assert planner.forecast()[QUEUE] == pytest.approx(epochs * 50 * 2 / CPU_GAIN + START)


def test_what_was_predicted_of_a_queue_stays_while_it_runs():
    record = RunRecord()
    record.predict({QUEUE: 100.0, "detect": 5.0})
    record.predict({QUEUE: 20.0, "detect": 6.0}, begun=QUEUE)
    assert record.predicted == {QUEUE: 100.0, "detect": 6.0}
