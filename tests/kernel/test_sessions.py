"""A training that takes several sessions, each with the outputs of those before mounted: the bytes of an unbroken run.

Session 1 trains Faster R-CNN and half of YOLOv5, session 2 the rest, session 3 finds nothing left to train.
"""

import contextlib
import io
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from siimcovid.core import paths
from siimcovid.core.errors import InputError
from siimcovid.core.presets import DEMO
from siimcovid.core.stage_names import SUBMISSION_STAGES
from siimcovid.evaluation import submission_validator
from siimcovid.inference import fitted_numbers
from siimcovid.kernel import kernel_inputs, run_plan, step_profile, steps, train_models, weights_sources
from siimcovid.kernel.notebook_parameters import Parameters
from siimcovid.kernel.recovery import Recovery
from siimcovid.kernel.replanning import Planner
from siimcovid.kernel.run import Run
from siimcovid.kernel.step_forecast import Profile, StageProfile, forecast
from siimcovid.kernel.time_budget import TimeBudget
from siimcovid.models import published_weights, weights_manifest
from siimcovid.synthetic.demo_competition import write_competition
from siimcovid.training.training_loop import TrainingLoop
from support.kernel_cells import draw_nothing, run_cells
from support.tiny_weights import write_weights

SETTINGS = {"cache_size": 64, "fusion.hflip_tta": False, "members": 2, "folds": 2}
for _stage in SUBMISSION_STAGES:
    SETTINGS |= {f"{_stage}.size": 64, f"{_stage}.infer_size": 64}
    SETTINGS |= {f"{_stage}.training.epochs": 2, f"{_stage}.training.batch": 2}

MODELS = tuple(f"{stage}{number}" for number in ("", ".1") for stage in SUBMISSION_STAGES)
SLUG = "siim-covid19"


class Sessions:
    """Runs of the notebook that mount the outputs of earlier ones.

    runs: name -> the Run. texts: name -> what it printed. trained: name -> (stage, folder, epoch) of each epoch.
    """

    def __init__(self, top: Path, patch: pytest.MonkeyPatch, capsys_text):
        self.top, self.patch, self.printed = top, patch, capsys_text
        self.runs: dict[str, Run] = {}
        self.texts: dict[str, str] = {}
        self.trained: dict[str, list[tuple[str, str, int]]] = {}

    def run(self, name: str, sessions: int = 2, stop_at: str = "", **parameters) -> Run:
        """Run the notebook into a folder of this name; `stop_at`: the model whose second epoch the hours do not allow.

        No model after it is trained.
        """
        real, trained = TrainingLoop.train_epoch, []

        def train_epoch(loop) -> None:
            if loop.out.name != "trial":
                trained.append((loop.stage, loop.out.name, loop.state.progress.epoch + 1))
            real(loop)

        with self.patch.context() as patch:
            patch.setattr(TrainingLoop, "train_epoch", train_epoch)
            if stop_at:
                late = {f"fit {name}" for name in MODELS[MODELS.index(stop_at) + 1 :]}
                has_time = Run.has_time
                patch.setattr(Run, "has_time", lambda run, step, s=0.0: step not in late and has_time(run, step, s))
                ask = train_models.time_for_another_epoch
                patch.setattr(
                    train_models,
                    "time_for_another_epoch",
                    lambda run, step, model: (lambda _: False) if model == stop_at else ask(run, step, model),
                )
            given = {"COMPETITION_DIR": str(self.top / "competition"), "OUTPUT_DIR": str(self.top / name)}
            given |= {"PRESET": "demo", "MODE": "finetune", "OVERRIDES": SETTINGS, "SESSIONS": sessions}
            self.runs[name] = run_cells(**given | parameters)["run"]
        self.texts[name], self.trained[name] = self.printed(), trained
        return self.runs[name]

    def mount(self, name: str, slug: str) -> Path:
        """Mount a run's output as Kaggle does, without the images' cache, which lies elsewhere there."""
        folder = self.top / "input" / slug
        shutil.copytree(self.top / name, folder, ignore=shutil.ignore_patterns("cache"))
        for path in folder.rglob("*"):
            path.chmod(0o555 if path.is_dir() else 0o444)
        return folder


def state(folder: Path) -> set[tuple[Path, int, int]]:
    return {(path, path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*")}


@pytest.fixture(scope="module")
def sessions(tmp_path_factory) -> Iterator[Sessions]:
    """An unbroken run, three sessions, and one that predicts with what the first session left."""
    top = tmp_path_factory.mktemp("sessions")
    write_competition(top / "competition", train_studies=8, test_studies=3, seed=2, scale=0.03)
    published_weights.import_weights("efficientnet_lite0", None, top / "input" / "weights-dataset")
    text = io.StringIO()

    def printed() -> str:
        value = text.getvalue()
        text.seek(0)
        text.truncate()
        return value

    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(text):
        patch.setattr(paths, "KAGGLE_INPUT", top / "input")
        patch.setattr(step_profile, "STEPS", 1)
        patch.setattr(step_profile, "TRIAL_IMAGES", 1)
        draw_nothing(patch.setattr)
        made = Sessions(top, patch, printed)
        made.run("whole", sessions=1)
        made.run("first", stop_at="yolo")
        first = made.mount("first", f"{SLUG}-1")
        before = state(first)
        made.run("infer", MODE="infer")
        made.run("second")
        made.mount("second", f"{SLUG}-2")
        made.run("third")
        made.run("other", stop_at="rcnn", SEED=5)
        assert state(first) == before
        yield made


@pytest.mark.slow
def test_two_sessions_give_the_bytes_of_an_unbroken_run(sessions):
    whole, second = (sessions.runs[name].folder for name in ("whole", "second"))
    files = [f"weights/{name}.safetensors" for name in MODELS]
    for file in (*files, "detections.csv", "study_probabilities.csv", "submission.csv"):
        assert (second / file).read_bytes() == (whole / file).read_bytes(), file
    assert not list((second / "weights").rglob("*.resume.pt"))
    assert sessions.trained["first"] == [("rcnn", "weights", 1), ("rcnn", "weights", 2), ("yolo", "weights", 1)]
    left = [("study", "weights"), *((stage, "member_1") for stage in SUBMISSION_STAGES)]
    assert sessions.trained["second"] == [
        ("yolo", "weights", 2),
        *((*each, epoch) for each in left for epoch in (1, 2)),
    ]
    assert "rcnn is the finished one of" in sessions.texts["second"]
    assert "The training of yolo goes on from" in sessions.texts["second"]
    assert "after epoch 1." in sessions.texts["second"]
    assert "rcnn.safetensors comes from" in sessions.texts["second"]
    assert "study starts from efficientnet_lite0.safetensors of" in sessions.texts["second"]


@pytest.mark.slow
def test_a_third_session_trains_nothing_and_measures_no_training(sessions):
    run = sessions.runs["third"]
    assert sessions.trained["third"] == []
    assert all(profile.epoch == 0 for profile in run.planner.profile.stages.values())
    assert run.planner.profile.trained == dict.fromkeys(MODELS, 2)
    whole = sessions.runs["whole"].folder
    assert (run.folder / "submission.csv").read_bytes() == (whole / "submission.csv").read_bytes()
    assert set(weights_manifest.read_manifest(run.folder / "weights")) >= {f"{name}.safetensors" for name in MODELS}


@pytest.mark.slow
def test_every_session_submits_with_what_it_has(sessions):
    for name, run in sessions.runs.items():
        sample = sessions.top / "competition" / "sample_submission.csv"
        checked = submission_validator.validate(run.folder / "submission.csv", sample, run.folder / "index.csv")
        assert checked.faults == [], name
        assert run.degraded == [] or name == "infer", name
    first = sessions.runs["first"]
    assert set(first.predictions.predicted) == {"rcnn", "yolo"}
    assert first.record.by_priors == 3  # the studies
    assert "training of yolo pauses after epoch 1: the next session goes on" in first.record.ended
    assert json.loads((first.folder / "weights" / "yolo.json").read_text())["finished"] is False
    assert (first.folder / "weights" / "yolo.resume.pt").is_file()
    assert json.loads((first.folder / "run.json").read_text())["sessions"] == 2


@pytest.mark.slow
def test_an_unfinished_model_is_used_to_predict(sessions):
    run, first = sessions.runs["infer"], sessions.runs["first"]
    assert set(run.predictions.predicted) == {"rcnn", "yolo"}
    assert (
        f"yolo.safetensors comes from {sessions.top / 'input' / f'{SLUG}-1' / 'weights'} (its training is unf"
        in (sessions.texts["infer"])
    )
    assert (run.folder / "detections.csv").read_bytes() == (first.folder / "detections.csv").read_bytes()


@pytest.mark.slow
def test_another_identity_is_trained_anew_and_said(sessions):
    assert sessions.trained["other"] == [("rcnn", "weights", 1)]
    folder = re.escape(str(sessions.top / "input" / f"{SLUG}-2" / "weights"))
    said = rf"rcnn is trained anew: the one in {folder} is of a training with other settings \(.*seed"
    assert re.search(said, sessions.texts["other"])


def output(folder: Path, stages: tuple[str, ...], finished: bool = True, identity: object = "one") -> Path:
    """The output of a session whose kernel has this folder's name: its weights/, with these stages trained."""
    weights = write_weights(folder / "weights", stages)
    (folder / "run.json").write_text("{}")
    for stage in stages:
        (weights / f"{stage}.json").write_text(json.dumps({"identity": {"is": identity}, "finished": finished}))
    return weights


def found(root: Path, monkeypatch, **given) -> tuple[kernel_inputs.KernelInputs, Recovery]:
    """The weights folders below `root`, as a run finds them."""
    monkeypatch.setattr(paths, "KAGGLE_INPUT", root / "input")
    inputs, recovery = kernel_inputs.KernelInputs(), Recovery()
    parameters = Parameters(root / "out", preset=DEMO, **given)
    kernel_inputs.find_weights(inputs, parameters, recovery)
    planner = Planner(parameters.preset, parameters.mode == "finetune")
    kernel_inputs.read_fitted_ensemble(inputs, planner, parameters, recovery)
    return inputs, recovery


def test_two_weights_datasets_are_merged_stage_by_stage(tmp_path, monkeypatch, capsys):
    one = write_weights(tmp_path / "input" / "one", ("rcnn", "yolo"))
    two = write_weights(tmp_path / "input" / "two", ("yolo", "study"))
    inputs, recovery = found(tmp_path, monkeypatch)
    assert recovery.degraded == []
    assert inputs.models == {"rcnn": one, "yolo": one, "study": two}
    assert capsys.readouterr().out.splitlines() == [
        f"rcnn.safetensors comes from {one}",
        f"study.safetensors comes from {two}",
        f"yolo.safetensors comes from {one}",
    ]
    named, _ = found(tmp_path, monkeypatch, weights_dir=two)
    assert named.models == {"rcnn": one, "yolo": two, "study": two}


def test_the_latest_session_goes_first_and_a_dataset_gives_the_start(tmp_path, monkeypatch, capsys):
    nine, ten = (output(tmp_path / "input" / f"{SLUG}-{n}", ("rcnn",)) for n in (9, 10))
    dataset = write_weights(tmp_path / "input" / "weights", ("rcnn", "study"))
    inputs, _ = found(tmp_path, monkeypatch, mode="finetune", sessions=2)
    assert (inputs.earlier, inputs.starts) == ([ten, nine], [dataset])
    assert inputs.models == {"rcnn": ten, "study": dataset}
    assert f"rcnn starts from rcnn.safetensors of {dataset}" in capsys.readouterr().out
    assert weights_sources.start_folder([ten, dataset], "study", DEMO.study) == dataset


def test_outputs_alone_are_no_start_for_a_session_and_one_for_a_single_run(tmp_path, monkeypatch):
    earlier = output(tmp_path / "input" / f"{SLUG}-1", SUBMISSION_STAGES)
    inputs, _ = found(tmp_path, monkeypatch, mode="finetune", sessions=2)
    assert inputs.starts == [tmp_path / "out" / "imagenet"]
    assert found(tmp_path, monkeypatch, mode="finetune")[0].starts == [earlier]


@pytest.mark.parametrize(("identity", "first"), [("one", 1), ("another", 2)])
def test_a_finished_model_goes_before_an_unfinished_one_of_the_same_training(tmp_path, monkeypatch, identity, first):
    folders = {1: output(tmp_path / "input" / f"{SLUG}-1", ("rcnn",), identity=identity)}
    folders[2] = output(tmp_path / "input" / f"{SLUG}-2", ("rcnn",), finished=False)
    assert found(tmp_path, monkeypatch)[0].models == {"rcnn": folders[first]}


def test_a_damaged_file_or_manifest_leaves_the_other_folders(tmp_path, monkeypatch):
    folders = {n: output(tmp_path / "input" / f"{SLUG}-{n}", ("rcnn",)) for n in (1, 2, 3)}
    (folders[3] / "manifest.json").write_text("{")
    (folders[2] / "rcnn.safetensors").write_bytes(b"damaged")
    inputs, recovery = found(tmp_path, monkeypatch)
    assert inputs.models == {"rcnn": folders[1]}
    assert ["manifest.json is damaged" in recovery.degraded[0]["reason"], len(recovery.degraded)] == [True, 2]
    assert "rcnn.safetensors is damaged" in recovery.degraded[1]["reason"]
    for broken, left in ((3, "manifest.json is damaged"), (2, "rcnn.safetensors is damaged")):
        with pytest.raises(InputError, match=left):
            kernel_inputs.find_weights(
                kernel_inputs.KernelInputs(), Parameters(tmp_path / "out"), Recovery(strict=True)
            )
        shutil.rmtree(folders[broken])


def test_fitted_numbers_come_from_the_folder_of_the_models(tmp_path, monkeypatch, capsys):
    numbers = {"late_fusion.opacity_none": 0.25}
    dataset = write_weights(tmp_path / "input" / "weights", SUBMISSION_STAGES)
    fitted_numbers.write(dataset, numbers, DEMO, "nothing")
    found(tmp_path, monkeypatch)
    assert f"the numbers of {dataset}" in capsys.readouterr().out
    output(tmp_path / "input" / f"{SLUG}-1", SUBMISSION_STAGES[:1])  # models of two folders: nobody fitted them
    found(tmp_path, monkeypatch)
    assert "the numbers of" not in capsys.readouterr().out


#: Ten epochs of three stages at 100 s do not fit into half an hour.
SLOW = Profile(test_images=10, stages=dict.fromkeys(SUBMISSION_STAGES, StageProfile(epoch=100, image=1)))


def test_sessions_cut_no_training_and_a_single_run_does():
    preset = steps.check_parameters({"preset": "demo", "overrides": {"members": 2, "folds": 2}}, Recovery()).preset
    single, several = Planner(preset, True, False, SLOW), Planner(preset, True, True, SLOW)
    for planner in (single, several):
        planner.revise(1800, ())
    everything = single.requested_plan()
    assert several.plan == everything  # training is no reason to leave out mirrored images
    assert all(several.plan.epochs[stage] > single.plan.epochs[stage] for stage in single.plan.stages)
    assert single.plan.members == 1
    done = {name: everything.epochs[name.partition(".")[0]] for name in everything.models(everything.stages)}
    several.profile = replace(SLOW, trained=done)
    several.revise(1800, ())
    assert several.plan == everything  # what an earlier session trained takes no time
    assert Planner(preset, False, True, SLOW).pauses is False
    assert run_plan.fit_plan(SLOW, everything, 1.0, pauses=True).detectors == everything.detectors


def test_a_session_trains_as_long_as_the_prediction_still_fits(tmp_path):
    """The models after it are left to a later session; a single run keeps the time for them."""
    for sessions, fits in ((1, False), (2, True)):
        parameters = Parameters(tmp_path, preset=DEMO, mode="finetune", sessions=sessions)
        run = Run(parameters, TimeBudget(1.0, 0.0, lambda: 0.0))
        run.planner.profile = SLOW
        assert run.has_time("fit rcnn", 2000) is fits
        kept = sum(seconds for step, seconds in forecast(SLOW, run.plan).items() if not step.startswith("fit "))
        assert run.has_time("fit study", run.budget.left() - kept - 1)
        assert not run.has_time("fit study", run.budget.left() - kept)
