"""The queue of a run's trainings: who waits, who fails, what fits the hours, and what an earlier session left."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch

from siimcovid.core.presets import DEMO, load_preset
from siimcovid.core.stage_names import SUBMISSION_STAGES, stage_of
from siimcovid.data.competition import index_table
from siimcovid.kernel import earlier_sessions, side_by_side_training, stage_models, train_models
from siimcovid.kernel.earlier_sessions import Earlier
from siimcovid.kernel.notebook_parameters import Parameters
from siimcovid.kernel.queue_forecast import CPU_GAIN, QUEUE, START, Machine
from siimcovid.kernel.recovery import Recovery
from siimcovid.kernel.run import Run
from siimcovid.kernel.step_forecast import Profile, StageProfile
from siimcovid.kernel.time_budget import RESERVE, TimeBudget
from siimcovid.models import weights_manifest
from siimcovid.training import train_stage
from siimcovid.training.side_by_side import NoProcessError, Outcome
from support.tiny_stages import eight_images

#: Seconds of an epoch with the whole machine; in one of two places it takes 2 / CPU_GAIN times as long.
EPOCH = {"rcnn": 100.0, "yolo": 60.0, "study": 50.0}
SLOWER = 2 / CPU_GAIN


@dataclass
class Clock:
    """Seconds that pass as trainings end."""

    seconds: float = 0.0

    def __call__(self) -> float:
        return self.seconds


@dataclass
class Processes:
    """SideBySide whose trainings take as long as `seconds` says: of those that run, the one that is done first ends.

    fails: model -> what it fails with, each time one of them. begun: (model, the second, training batch, seconds to
    its deadline).
    """

    clock: Clock
    places: list = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    fails: dict[str, list[str]] = field(default_factory=dict)
    out_of_time: tuple[str, ...] = ()
    begun: list[tuple[str, float, int, float]] = field(default_factory=list)
    running: dict[str, tuple[float, object]] = field(default_factory=dict)
    threads: dict[str, int] = field(default_factory=dict)  # asked for instead of the place's; 0 for those

    def __call__(self, places: list) -> "Processes":
        self.free, self.count = list(places), len(places)
        return self

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *_: object) -> None:
        self.left = sorted(self.running)

    def start(self, name, job, foreseen=0.0, threads=0):
        if "no process" in self.fails.get(name, ()):
            raise NoProcessError("no process can be started")
        batch = getattr(job.preset, job.stage).training.batch
        self.begun.append((name, self.clock.seconds, batch, job.deadline - side_by_side_training.time.time()))
        self.threads[name] = threads
        self.running[name] = self.clock.seconds + self.seconds.get(name, 1.0), self.free.pop(0)

    def wait(self) -> list[Outcome]:
        if not self.running:
            return []
        name = min(self.running, key=lambda name: self.running[name][0])
        end, place = self.running.pop(name)
        began = next(begin for model, begin, *_ in reversed(self.begun) if model == name)
        self.clock.seconds = end
        self.free.append(place)
        failure = self.fails[name].pop(0) if self.fails.get(name) else ""
        return [Outcome(name, place, end - began, name in self.out_of_time, failure, "Traceback there" * bool(failure))]


@dataclass
class Queued:
    """A run on a fake clock whose trainings are fake too; `trained` and `offered`: see side_by_side_training.train."""

    run: Run
    processes: Processes
    clock: Clock
    offered: list[str] = field(default_factory=list)
    trained: dict[str, Path | None] = field(default_factory=dict)

    def train(self, *names: str) -> dict[str, Path | None]:
        names = names or self.run.plan.models(self.run.plan.stages)
        side_by_side_training.train(self.run, names, self.trained)
        return self.trained

    @property
    def order(self) -> list[str]:
        return [name for name, *_ in self.processes.begun]

    def deadlines(self) -> dict[str, float]:
        return {name: seconds for name, *_, seconds in self.processes.begun}


@pytest.fixture
def queued(tmp_path, monkeypatch):
    """A function that makes one: two places on the CPU, an hour, an epoch of each stage."""

    def make(hours=1.0, epochs=1, members=1, machine=None, strict=False, **parameters) -> Queued:
        clock = Clock()
        changes = {f"{stage}.training.epochs": epochs for stage in SUBMISSION_STAGES}
        changes |= {"members": members, "folds": max(2, members), "fusion.hflip_tta": False}
        given = Parameters(tmp_path, preset=load_preset("demo", changes), mode="finetune", hours=hours, **parameters)
        run = Run(given, TimeBudget(hours, 0.0, clock), Recovery(strict))
        machine = machine or Machine(cores=2)
        run.planner.profile = Profile(stages={s: StageProfile(epoch=n) for s, n in EPOCH.items()}, machine=machine)
        run.planner.revise(run.budget.left(), ())
        made = Queued(run, Processes(clock), clock)
        monkeypatch.setattr(side_by_side_training, "SideBySide", made.processes)
        monkeypatch.setattr(side_by_side_training.time, "time", lambda: clock.seconds)
        monkeypatch.setattr(side_by_side_training.torch.cuda, "empty_cache", lambda: None)
        monkeypatch.setattr(stage_models, "identity", lambda run, name: {"of": name})
        monkeypatch.setattr(stage_models, "member_images", lambda run, name: (run.preset, run.prepared_images))
        monkeypatch.setattr(stage_models, "offer", lambda run, name, path: made.offered.append(name))
        return made

    return make


def test_the_longest_first_and_each_as_soon_as_a_place_is_free(queued, capsys):
    made = queued()
    made.processes.seconds = {"rcnn": 20.0, "yolo": 9.0, "study": 8.0}
    trained = made.train()
    assert [entry[:2] for entry in made.processes.begun] == [("rcnn", 0.0), ("yolo", 0.0), ("study", 9.0)]
    weights = made.run.folder / "weights"
    assert trained == {stage: weights / f"{stage}.safetensors" for stage in SUBMISSION_STAGES}
    assert made.offered == ["yolo", "study", "rcnn"]
    assert made.run.degraded == []
    where = {"place": "CPU, 1 thread", "threads": 1}
    assert made.run.record.jobs == [
        {"model": "yolo", **where, "begin": 0.0, "seconds": 9.0, "ended": "trained"},
        {"model": "study", **where, "begin": 9.0, "seconds": 8.0, "ended": "trained"},
        {"model": "rcnn", **where, "begin": 0.0, "seconds": 20.0, "ended": "trained"},
    ]
    made.run.write()
    assert json.loads((made.run.folder / "run.json").read_text())["jobs"] == made.run.record.jobs
    assert capsys.readouterr().out.splitlines() == [
        "rcnn, yolo, study: 2 at a time, each on CPU with 1 thread",
        "yolo: trained after 0:09 (CPU, 1 thread)",
        "study: trained after 0:08 (CPU, 1 thread)",
        "rcnn: trained after 0:20 (CPU, 1 thread)",
    ]


def test_one_fails_and_the_others_go_on(queued):
    made = queued()
    made.processes.fails = {"yolo": ["NotFiniteError: the loss is nan"]}
    assert {name: bool(path) for name, path in made.train().items()} == {"rcnn": True, "yolo": False, "study": True}
    (fault,) = made.run.degraded
    assert (fault["step"], fault["reason"], fault["fallback"]) == (
        "fit yolo",
        "training of yolo failed: NotFiniteError: the loss is nan",
        "a yolo from the weights folder, if it has a trained one",
    )
    assert "Traceback there" in fault["traceback"]
    assert [row["ended"] for row in made.run.record.jobs if row["model"] == "yolo"] == ["failed"]


def test_strict_stops_at_the_first_fault(queued):
    made = queued(strict=True)
    made.processes.seconds, made.processes.fails = {"rcnn": 5.0, "yolo": 1.0}, {"yolo": ["an error"]}
    with pytest.raises(RuntimeError, match="training of yolo failed: an error"):
        made.train()
    assert made.processes.left == ["rcnn"]  # which leaving the context ends


def test_a_lack_of_memory_halves_the_batch_once_for_a_stage(queued):
    """Both members of YOLO run when memory is short; the second finds the batch halved already."""
    made = queued(members=2)
    short = "a process was killed without a word, as the system does when it is out of memory"
    made.processes.fails = {"yolo": [short], "yolo.1": [short]}
    made.processes.seconds = {"rcnn": 0.5, "study": 0.5, "rcnn.1": 0.5, "yolo": 9.0, "yolo.1": 9.0}
    trained = made.train()
    assert all(trained.values())
    whole = DEMO.yolo.training.batch
    batches = [(name, batch) for name, _, batch, _ in made.processes.begun if stage_of(name) == "yolo"]
    assert batches == [("yolo", whole), ("yolo.1", whole), ("yolo", whole // 2), ("yolo.1", whole // 2)]
    assert made.run.plan.batch == {"yolo": whole // 2}
    assert {fault["fallback"] for fault in made.run.degraded} == {"half the batch, accumulated to the same"}
    made.processes.fails = {"study": ["out of memory"] * 9}
    made.trained.clear()
    assert made.train("study") == {"study": None}
    assert "memory does not suffice to train study on single images" in made.run.degraded[-1]["reason"]


def test_each_has_the_time_that_those_that_wait_leave(queued):
    """rcnn takes 156 s of its place, yolo and study 96 and 81 of the other, one after the other."""
    made = queued(hours=240 / 3600 / (1 - RESERVE))
    after = made.run.planner.seconds_after(QUEUE)
    made.processes.seconds = {stage: seconds * SLOWER + START for stage, seconds in EPOCH.items()}
    made.train()
    left = 240 - after
    deadlines = made.deadlines()
    assert deadlines["rcnn"] == pytest.approx(left, abs=0.2)  # the other place does the rest
    assert deadlines["yolo"] == pytest.approx(left - (50 * SLOWER + START), abs=0.2)
    assert deadlines["study"] == pytest.approx(left - (60 * SLOWER + START), abs=0.2)
    assert made.run.record.ended == []


def test_what_does_not_fit_is_not_begun(queued):
    """Eight seconds are left for the study model, which by the plan is to be trained at half the resolution."""
    made = queued(hours=240 / 3600 / (1 - RESERVE))
    made.processes.seconds, made.processes.out_of_time = {"rcnn": 225.0, "yolo": 224.0}, ("rcnn",)
    assert made.train() == {
        "rcnn": made.run.folder / "weights" / "rcnn.safetensors",
        "yolo": made.run.folder / "weights" / "yolo.safetensors",
        "study": None,
    }
    assert made.order == ["rcnn", "yolo"]
    assert made.run.record.ended == [
        f"study is not trained: {50 / 4 * SLOWER + START:.0f} s for an epoch do not fit",
        "training of rcnn ends before its last epoch",
    ]


def test_a_session_leaves_nothing_for_those_that_wait(queued):
    made = queued(hours=240 / 3600 / (1 - RESERVE), sessions=2)
    made.processes.out_of_time = ("rcnn",)
    made.train()
    left = 240 - made.run.planner.seconds_after(QUEUE)
    assert made.deadlines()["rcnn"] == made.deadlines()["yolo"] == pytest.approx(left)
    assert made.run.record.ended == []  # what is unfinished is said by its checkpoint, of which there is none here
    assert {row["model"]: row["ended"] for row in made.run.record.jobs}["rcnn"] == "paused"


def test_slower_than_foreseen_drops_members_that_have_not_begun(queued):
    """Three models of each stage would take 500 s; they turn out to take three times as long."""
    made = queued(members=3, hours=600 / 3600 / (1 - RESERVE))
    assert made.run.plan.members == 3
    names = made.run.plan.models(made.run.plan.stages)
    made.processes.seconds = {name: 3 * (EPOCH[stage_of(name)] * SLOWER + START) for name in names}
    trained = made.train()
    assert made.run.plan.members < 3
    assert {*SUBMISSION_STAGES} <= {*trained}
    assert made.clock.seconds < 600
    assert any(line.startswith("fold ensemble") for line in made.run.record.dropped)


def test_finished_models_of_earlier_sessions_are_taken(queued, monkeypatch):
    made, looked = queued(), []

    def look_up(run, name, identity):
        looked.append((name, identity))
        return Earlier(done=name == "rcnn", resume_from=Path("/input/1") if name == "yolo" else None)

    monkeypatch.setattr(earlier_sessions, "look_up", look_up)
    given, start = [], made.processes.start
    monkeypatch.setattr(made.processes, "start", lambda name, job, *rest: given.append(job) or start(name, job))
    trained = made.train()
    assert looked == [(name, {"of": name}) for name in SUBMISSION_STAGES]
    assert made.order == ["yolo", "study"]
    assert [job.resume_from for job in given] == [Path("/input/1"), None]
    assert trained["rcnn"] == made.run.folder / "weights" / "rcnn.safetensors"
    assert made.offered[0] == "rcnn"


@pytest.mark.parametrize(
    ("from_study", "threads"),
    [
        (("rcnn", "yolo"), {"study": 2, "rcnn": 0, "yolo": 0}),
        (("rcnn",), {"study": 0, "rcnn": 0, "yolo": 0}),  # YOLO can begin beside the study model
        ((), {"study": 0, "rcnn": 0, "yolo": 0}),
    ],
)
def test_a_model_for_which_all_others_wait_has_all_cores(queued, monkeypatch, from_study, threads):
    made = queued()
    monkeypatch.setattr(stage_models, "start_of", lambda run, name: made.run.folder)
    made.run.planner.plan = replace(made.run.plan, from_study=from_study)
    made.train()
    assert made.processes.threads == threads


def test_a_model_waits_for_the_one_it_starts_from(queued, monkeypatch):
    """WEIGHTS_DIR is the run's own weights: a further member starts from the first, as it does one after the other."""
    made = queued(members=2)
    weights = made.run.folder / "weights"
    weights.mkdir()
    monkeypatch.setattr(stage_models, "start_of", lambda run, name: weights)
    others = made.run.plan.models(made.run.plan.stages)
    assert side_by_side_training.starts_from(made.run, "yolo.1", others) == {"yolo"}
    assert side_by_side_training.starts_from(made.run, "yolo", others) == set()
    assert side_by_side_training.starts_from(made.run, "study", ["backbone", "rcnn"]) == {"backbone"}
    made.processes.seconds = {"rcnn": 99.0}
    made.train()
    begun = {name: second for name, second, *_ in made.processes.begun}
    assert begun["rcnn.1"] == 99.0
    assert begun["yolo.1"] < 99.0
    monkeypatch.setattr(stage_models, "start_of", lambda run, name: made.run.folder)
    assert side_by_side_training.starts_from(made.run, "yolo.1", others) == set()
    made.run.planner.plan = replace(made.run.plan, from_study=("rcnn",))
    assert side_by_side_training.starts_from(made.run, "rcnn.1", others) == {"study.1"}


def test_on_several_gpus_the_last_model_has_them_all(queued):
    """What is left over goes to the loop that trains one after the other."""
    made = queued(machine=Machine(cores=4, gpus=2))
    made.run.planner.train_at_a_time(2)
    made.processes.fails = {"study": ["out of memory"]}
    made.processes.seconds = {"rcnn": 3.0, "yolo": 1.0, "study": 9.0}
    assert set(made.train()) == {"rcnn", "yolo"}
    assert [row["place"] for row in made.run.record.jobs] == ["GPU 1", "GPU 0", "GPU 1"]


def test_one_core_or_no_process_trains_one_after_the_other(queued, monkeypatch):
    made = queued(machine=Machine())
    assert made.run.plan.jobs == 1
    made.run.planner.train_at_a_time(2)  # as an earlier run in the folder did, on another machine
    assert made.train() == {}

    alone = []
    monkeypatch.setattr(train_models, "_train", lambda run, name: alone.append(name))
    monkeypatch.setattr(stage_models, "load", lambda run, name, path=None: None)
    again = queued()
    again.processes.fails = {"rcnn": ["no process"]}
    train_models.fit(again.run)
    assert alone == list(SUBMISSION_STAGES)
    assert again.run.plan.jobs == 1
    assert again.run.degraded[0]["fallback"] == "the models are trained one after the other"


def test_a_queue_is_one_step_of_the_run(queued, monkeypatch):
    made = queued()
    made.processes.seconds = {"rcnn": 20.0, "yolo": 9.0, "study": 8.0}
    made.run.revise()
    predicted = made.run.record.predicted[QUEUE]
    loaded = []
    monkeypatch.setattr(stage_models, "load", lambda run, name, path=None: loaded.append((name, path)) or (1, 2))
    rows = train_models.fit(made.run)
    assert made.run.record.seconds == {QUEUE: 20.0}
    assert made.run.record.predicted[QUEUE] == predicted > 0
    assert [name for name, _ in loaded] == rows["model"].tolist() == list(SUBMISSION_STAGES)
    assert rows["file"].tolist() == [str(path) for _, path in loaded]
    assert not [row for row in made.run.record.step_table() if row["step"].startswith("fit ")]


def test_settings_are_kept_for_who_is_killed(queued):
    """run.json has the number of models at a time before the first begins, and a restart keeps it."""
    made = queued()
    real, seen = made.processes.start, []

    def start(name, job, *rest):
        seen.append(json.loads((made.run.folder / "run.json").read_text())["plan"])
        real(name, job, *rest)

    made.processes.start = start
    made.train()
    assert seen[0]["jobs"] == 2
    assert seen[0]["members_at_start"] == {"rcnn": 1}
    assert replace(made.run.plan, jobs=1) != made.run.plan


@pytest.mark.slow
def test_real_trainings_into_the_runs_weights(tmp_path, capsys):
    """YOLO's loss is not finite from its second step on; the study model has the bytes of a training alone."""
    changes = {"cache_size": 64, "yolo.training.learning_rate": 1e30, "yolo.training.warmup": 0}
    for stage in ("study", "yolo"):
        changes |= {f"{stage}.size": 64, f"{stage}.infer_size": 64, f"{stage}.training.epochs": 2}
        changes |= {f"{stage}.training.batch": 2, f"{stage}.training.nominal_batch": 2}
    run = Run(Parameters(tmp_path, preset=load_preset("demo", changes), mode="finetune"), TimeBudget(1.0))
    run.cache.mkdir(parents=True)
    _, images = eight_images(run.cache)
    images = index_table(images.assign(series_id="", in_sample=False, path="").to_dict("records"))
    run.inputs.competition = replace(run.competition, images=images)
    run.planner.profile = Profile(stages={s: StageProfile(epoch=n) for s, n in EPOCH.items()}, machine=Machine(cores=2))
    run.planner.train_at_a_time(2)
    trained: dict[str, Path | None] = {}
    side_by_side_training.train(run, ["yolo", "study"], trained)
    assert trained == {"study": stage_models.own(run, "study"), "yolo": None}
    (fault,) = run.degraded
    assert fault["reason"].startswith(
        "training of yolo failed: siimcovid.training.training_loop.NotFiniteError: the loss"
    )
    assert "job_child.py" in fault["traceback"]
    assert {row["model"]: row["ended"] for row in run.record.jobs} == {"yolo": "failed", "study": "trained"}
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("study ")]
    assert [line.split("  ")[0] for line in lines] == ["study 1/2", "study 2/2"]
    torch.set_num_threads(1)
    alone = train_stage.fit("study", *stage_models.member_images(run, "study"), run.cache, None, tmp_path / "alone")
    assert trained["study"].read_bytes() == alone.read_bytes()
    assert weights_manifest.read_manifest(trained["study"].parent).keys() == {"study.safetensors"}
