"""Trainings side by side: their places, lines and ends; the bytes of a training that ran alone."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from siimcovid.core.memory_errors import is_out_of_memory
from siimcovid.core.presets import DEMO
from siimcovid.data import datasets, image_memory
from siimcovid.data.competition import index_table
from siimcovid.models.checkpoints import read_tensors
from siimcovid.training import job_child, side_by_side, train_stage
from siimcovid.training.side_by_side import SideBySide, cpu_places, gpu_places, named
from siimcovid.training.training_job import TrainingJob, read_job, remove_job, write_job
from support import fake_job_child, two_processes
from support.tiny_stages import eight_images


@pytest.fixture
def fake(monkeypatch) -> None:
    """Processes of fake_job_child.py in place of trainings."""
    monkeypatch.setattr(side_by_side, "CHILD", fake_job_child.__name__)


def job(stage: str, out: Path) -> TrainingJob:
    return TrainingJob(stage, DEMO, pd.DataFrame({"image_id": ["a"], "boxes": [[]]}), out, None, out)


def indexed_images(folder: Path) -> tuple[Path, pd.DataFrame]:
    """A cache of eight images and their rows with all the index's columns."""
    cache, images = eight_images(folder)
    return cache, index_table(images.assign(series_id="", in_sample=False, path="").to_dict("records"))


def test_a_job_survives_its_files(tmp_path):
    cache, images = indexed_images(tmp_path)
    given = TrainingJob("study", DEMO, images, cache, None, tmp_path / "out", pause=True, deadline=12.5)
    path = write_job(given, {"threads": 2})
    found, values = read_job(path)
    assert replace(found, images=None) == replace(given, images=None)
    assert values["threads"] == 2
    assert train_stage.identity_of(*found.arguments()[:5]) == train_stage.identity_of(*given.arguments()[:5])
    remove_job(path)
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("rcnn 3/9  loss .412", "rcnn.1 3/9  loss .412"),
        ("rcnnx 3/9", "rcnn.1: rcnnx 3/9"),
        ("a warning", "rcnn.1: a warning"),
    ],
)
def test_lines_have_the_models_name(line, said):
    assert named(line, "rcnn.1", "rcnn") == said


def test_places_share_the_machine(monkeypatch):
    assert [place.threads for place in cpu_places(3, 8)] == [2, 2, 2]
    assert cpu_places(4, 2)[0].threads == 1
    monkeypatch.setattr(side_by_side, "processors", lambda: 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [(place.gpu, place.threads) for place in gpu_places(2)] == [("0", 2), ("1", 2)]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, GPU-8f")
    assert [place.gpu for place in gpu_places(2)] == ["3", "GPU-8f"]


def test_memory_is_shared(monkeypatch):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setenv("SIIMCOVID_SHARED_BY", "4")
    assert image_memory.training_bytes() == image_memory.TRAINING_BYTES / 4
    assert image_memory.training_bytes(workers=2) == image_memory.TRAINING_BYTES / 8  # each worker has a copy
    for gpus, workers in ((0, 0), (1, 2)):
        monkeypatch.setattr(datasets, "gpu_count", lambda gpus=gpus: gpus)
        monkeypatch.setattr(datasets, "processors", lambda: 8)
        assert datasets.loader_workers() == workers


def test_one_fails_and_the_others_go_on(fake, tmp_path, capsys):
    """Two places for four models; each ends in its way, and nothing of the jobs' files stays."""
    waiting, ended = ["yolo", "rcnn", "study", "retinanet"], {}
    with SideBySide(gpu_places(2)) as processes:
        while waiting or processes.names:
            while waiting and processes.free:
                stage = waiting.pop(0)
                processes.start(f"{stage}.1", job(stage, tmp_path), 7.0)
            assert len(processes.names) <= 2
            ended |= {outcome.name: outcome for outcome in processes.wait()}
    assert {name: outcome.failure for name, outcome in ended.items()} == {
        "yolo.1": "NotFiniteError: the loss is nan",
        "rcnn.1": "",
        "study.1": "a process was killed without a word, as the system does when it is out of memory",
        "retinanet.1": "ModuleNotFoundError: No module named 'x'",
    }
    assert is_out_of_memory(RuntimeError(ended["study.1"].failure))
    assert ended["yolo.1"].trace == "Traceback of it"
    out, err = capsys.readouterr()
    assert out.splitlines() == ["rcnn.1 1/2  loss .412", "rcnn.1 2/2  loss .312", "rcnn.1: a last line without its end"]
    said = ["rcnn.1: a warning", "retinanet.1: ModuleNotFoundError: No module named 'x'"]
    assert sorted(err.splitlines()) == said
    told = {stage: json.loads((tmp_path / f"{stage}.told.json").read_text()) for stage in ("yolo", "rcnn")}
    assert [each["CUDA_VISIBLE_DEVICES"] for each in told.values()] == ["0", "1"]
    assert told["rcnn"]["SIIMCOVID_SHARED_BY"] == "2"
    assert int(told["rcnn"]["OMP_NUM_THREADS"]) == told["rcnn"]["threads"] == ended["rcnn.1"].place.threads
    assert told["rcnn"]["foreseen"] == 7.0
    assert not [path for path in tmp_path.iterdir() if not path.name.endswith(".told.json")]


def alive(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def begun(path: Path) -> int:
    """The number of the process that writes it to a file."""
    until = time.monotonic() + 120
    while not path.is_file() or not path.read_text():
        assert time.monotonic() < until
        time.sleep(0.02)
    return int(path.read_text())


def family(pid: int) -> set[int]:
    """The processes of a process's group."""
    return {int(name) for name in os.listdir("/proc") if name.isdigit() and alive(int(name)) and group(name) == pid}


def group(name: str) -> int:
    try:
        return os.getpgid(int(name))
    except OSError:
        return 0


def gone(processes: set[int]) -> bool:
    until = time.monotonic() + 120
    while any(map(alive, processes)) and time.monotonic() < until:
        time.sleep(0.02)
    return not any(map(alive, processes))


def test_who_leaves_ends_the_processes(fake, tmp_path):
    with SideBySide(cpu_places(1, 1)) as processes:
        processes.start("backbone", job("backbone", tmp_path))
        started = family(begun(tmp_path / "backbone.pid"))
    assert len(started) == 2
    assert gone(started)
    assert not (tmp_path / "backbone.job.json").exists()


#: A process that starts a training, which takes long, and waits for it.
PARENT = """
import sys
from pathlib import Path
import pandas as pd
from siimcovid.core.presets import DEMO
from siimcovid.training import side_by_side
from siimcovid.training.training_job import TrainingJob

side_by_side.CHILD, out = "support.fake_job_child", Path(sys.argv[1])
images = pd.DataFrame({"image_id": ["a"], "boxes": [[]]})
processes = side_by_side.SideBySide(side_by_side.cpu_places(1, 1))
processes.start("backbone", TrainingJob("backbone", DEMO, images, out, None, out))
processes.wait()
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_run_leaves_no_orphan(tmp_path, how):
    """The parent's end closes the pipe on which its children wait."""
    environment = os.environ | {"PYTHONPATH": side_by_side.inherited_path()}
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)], env=environment)
    processes = family(begun(tmp_path / "backbone.pid"))
    assert len(processes) == 2
    parent.send_signal(how)
    assert parent.wait(120) == -how
    assert gone(processes)


def test_no_process_is_an_error_of_its_own(monkeypatch, tmp_path):
    def refuse(*_, **__):
        raise OSError("Cannot allocate memory")

    monkeypatch.setattr(side_by_side.subprocess, "Popen", refuse)
    with pytest.raises(side_by_side.NoProcessError, match="no process can be started to train rcnn"):
        SideBySide(cpu_places(1, 1)).start("rcnn", job("rcnn", tmp_path))
    assert not list(tmp_path.iterdir())


def test_the_deadline_counts_whole_epochs(monkeypatch):
    """Ten seconds of steps and fifty behind them; sixty were foreseen."""
    now = [1000.0]
    monkeypatch.setattr(job_child.time, "time", lambda: now[0])
    ask = job_child.TimeForEpochs(1000 + 130, 60)
    assert ask(10)
    now[0] += 60
    assert ask(10)  # 70 are left
    now[0] += 60
    assert not ask(10)
    assert ask.over
    assert job_child.TimeForEpochs(float("inf"), 60)(10)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict:
    """Two epochs of the study model, and YOLO that must pause after its first, side by side; the first also alone."""
    top = tmp_path_factory.mktemp("side_by_side")
    cache, images = indexed_images(top)
    ended, threads = {}, torch.get_num_threads()
    with SideBySide(cpu_places(2, 2)) as processes:
        for stage, seconds in (("study", float("inf")), ("yolo", -1.0)):
            given = TrainingJob(stage, two_processes.few_steps(stage), images, cache, None, top / "beside", pause=True)
            processes.start(stage, replace(given, deadline=time.time() + seconds))
        while processes.names:
            ended |= {outcome.name: outcome for outcome in processes.wait()}
    torch.set_num_threads(1)
    try:
        train_stage.fit("study", two_processes.few_steps("study"), images, cache, None, top / "alone")
    finally:
        torch.set_num_threads(threads)
    return {"top": top, "ended": ended}


@pytest.mark.slow
def test_the_bytes_of_a_training_alone_with_as_many_threads(trained):
    top = trained["top"]
    assert trained["ended"]["study"].failure == ""
    beside, alone = (top / name / "study.safetensors" for name in ("beside", "alone"))
    assert beside.read_bytes() == alone.read_bytes()
    facts = [json.loads(path.with_suffix(".json").read_text()) for path in (beside, alone)]
    assert facts[0]["identity"] == facts[1]["identity"]
    assert [each["threads"] for each in facts] == [1, 1]


@pytest.mark.slow
def test_a_deadline_pauses_a_training_of_the_queue(trained):
    folder, outcome = trained["top"] / "beside", trained["ended"]["yolo"]
    assert (outcome.failure, outcome.out_of_time) == ("", True)
    assert not trained["ended"]["study"].out_of_time
    facts = json.loads((folder / "yolo.json").read_text())
    assert (len(facts["epochs"]), facts["finished"]) == (1, False)
    assert (folder / "yolo.resume.pt").is_file()
    assert len(read_tensors(folder / "yolo.safetensors")[0]) > 10
    assert not list(folder.glob("*.job.json")) + list(folder.glob("*.images.csv")) + list(folder.glob("*.outcome.json"))
