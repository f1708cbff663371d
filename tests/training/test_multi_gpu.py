"""`torchrun` on two CPU processes (gloo): the same gradients, images and tables as one process."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch

from siimcovid.core import device
from siimcovid.core.memory_errors import is_out_of_memory
from siimcovid.core.overrides import override
from siimcovid.core.presets import DEMO
from siimcovid.data import competition
from siimcovid.models import checkpoints
from siimcovid.models.checkpoints import build_model, read_tensors
from siimcovid.synthetic.demo_competition import write_competition
from siimcovid.training import multi_gpu
from support import two_processes

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def without_gpus() -> Iterator[None]:
    """On the CPU, whatever the machine has; tests/gpu/test_two_gpus.py is for GPUs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        patch.setattr(device, "_tested", lambda: (0, None))
        yield


def test_children_import_whatever_their_parent_can(tmp_path, monkeypatch):
    """As in a kernel, where the package and the wheels are on sys.path alone."""
    environments = []

    def failing(command, *, env, **_):
        environments.append(env)
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(multi_gpu.subprocess, "run", failing)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "wheels")])
    images = pd.DataFrame({"image_id": ["a"], "boxes": [[]]})
    with pytest.raises(RuntimeError, match="in 2 processes failed with exit code 1"):
        multi_gpu.fit("study", DEMO, images, tmp_path, None, tmp_path / "out", processes=2)
    path = environments[0]["PYTHONPATH"].split(os.pathsep)
    ours = list(dict.fromkeys(filter(None, sys.path)))
    assert path[: len(ours)] == ours  # in the parent's order, so that what is installed goes before the wheels
    assert str(Path(multi_gpu.__file__).parents[2]) in path


def test_a_machine_whose_own_name_is_unknown(tmp_path):
    """Two processes meet and end there; torchrun left to itself would wait for ever."""
    try:
        subprocess.run(["unshare", "--uts", "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("it takes root to give a process another name of the machine")
    renamed = 'echo no-such-machine.invalid > /proc/sys/kernel/hostname && exec "$@"'
    command = ["unshare", "--uts", "sh", "-c", renamed, "sh", *multi_gpu.launcher(2), "--no-python", "echo", "met"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["met", "met"], done.stderr


def test_a_killed_run_leaves_no_orphan(tmp_path):
    """Its processes end with it; they wait here for a job that is never written."""
    job = tmp_path / "study.job.json"
    os.mkfifo(job)
    code = "import sys; from pathlib import Path; from siimcovid.training import multi_gpu; "
    code += "multi_gpu.run_processes('study', Path(sys.argv[1]), 2)"
    parent = subprocess.Popen([sys.executable, "-c", code, str(job)], stderr=subprocess.DEVNULL)

    def trainings() -> int:
        found = 0
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):  # it has ended meanwhile
                command = path.read_bytes()
                found += bytes(job) in command and b"distributed.run" not in command
        return found

    assert eventually(lambda: trainings() == 3)  # two, and the parent
    parent.kill()
    parent.wait()
    assert eventually(lambda: trainings() == 0)


def eventually(holds: Callable[[], bool], seconds: float = 60.0) -> bool:
    """Whether something comes to hold within so many seconds."""
    until = time.monotonic() + seconds
    while not holds() and time.monotonic() < until:
        time.sleep(0.1)
    return holds()


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> tuple[Path, Path]:
    """The folders of the same work done by one process and by two."""
    folder = tmp_path_factory.mktemp("launch")
    write_competition(folder / "data", train_studies=10, test_studies=1, seed=0, scale=0.05, workers=1)
    images = competition.load(folder / "data", splits=("train",)).images.head(9)  # eight and a damaged one
    damaged = images["path"].iloc[3]
    Path(damaged).write_bytes(Path(damaged).read_bytes()[:200])
    competition.write_index(images, folder / "index.csv")
    two_processes.work(folder, folder / "one")
    command = [*multi_gpu.launcher(2), two_processes.__file__]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(
        [*command, folder, folder / "two"], env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-6000:]
    # the second process's loss, though the first one says it
    assert "the loss of stage study is nan in epoch 2" in done.stdout + done.stderr
    return folder / "one", folder / "two"


@pytest.mark.parametrize("stage", checkpoints.STAGES)
def test_the_same_steps(stage, runs):
    """Every weight after the updates, to float32's rounding; running statistics are each process's own."""
    one, two = (read_tensors(out / f"{stage}.safetensors")[0] for out in runs)
    weights = [
        name for name, _ in build_model(stage, getattr(two_processes.few_steps(stage), stage)).named_parameters()
    ]
    assert len(weights) > 3
    for name in weights:
        torch.testing.assert_close(one[name], two[name], rtol=1e-4, atol=1e-5)
    losses = [pd.read_csv(out / f"{stage}.metrics.csv")["loss"] for out in runs]
    assert losses[0].between(1e-6, 1e3).all()


def test_processes_measure_the_same_model_and_end_together(runs):
    """Running statistics are the main process's before validation; a loss that is not finite in one process only takes
    both back to the first epoch."""
    one, two = runs
    assert len(json.loads((one / "line" / "study.json").read_text(encoding="utf-8"))["epochs"]) == 3
    assert len(json.loads((two / "line" / "study.json").read_text(encoding="utf-8"))["epochs"]) == 1
    means = [(two / "line" / f"mean.{rank}.txt").read_text() for rank in (0, 1)]
    assert means[0] == means[1]


def test_the_same_images_and_failures(runs):
    one, two = (out / "cache" for out in runs)
    names = sorted(path.name for path in one.glob("*.png"))
    assert len(names) == 8
    assert names == sorted(path.name for path in two.glob("*.png"))
    assert all((one / name).read_bytes() == (two / name).read_bytes() for name in names)
    assert (one / "failures.csv").read_bytes() == (two / "failures.csv").read_bytes()
    assert len(pd.read_csv(one / "failures.csv")) == 1
    shares = [len((two / f"prepared-{k}-of-2.csv").read_text().splitlines()) - 1 for k in (0, 1)]
    assert abs(shares[0] - shares[1]) <= 1  # each made its half


def test_two_processes_go_on_where_one_has_paused(runs, tmp_path, monkeypatch):
    """Three images a step: two and one. One process and a half of two end with the weights of one alone."""
    one, _ = runs
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    images = competition.read_index(one.parent / "index.csv")
    failed = pd.read_csv(one / "cache" / "failures.csv", dtype=str)["image_id"]
    samples = images[~images["image_id"].isin(failed)].reset_index(drop=True)
    changes = {"study.training.batch": 3, "study.training.nominal_batch": 0, "study.dropout": 0.0}
    task = "study", override(two_processes.few_steps("study"), changes), samples, one / "cache", None
    whole = multi_gpu.fit(*task, tmp_path / "whole", processes=1)
    multi_gpu.fit(*task, tmp_path / "first", seconds=0.0, processes=1, pause=True)
    second = tmp_path / "second"
    path = multi_gpu.fit(*task, second, processes=2, resume_from=tmp_path / "first")
    half = read_tensors(tmp_path / "first" / "study.safetensors")[0]
    expected, found = read_tensors(whole)[0], read_tensors(path)[0]
    for name in ("head.0.weight", "head.3.bias"):
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-6)
        assert not torch.equal(found[name], half[name])
    assert len(pd.read_csv(second / "study.metrics.csv")) == 2


def test_processes_import_what_their_parent_can(tmp_path, monkeypatch):
    """From sys.path, though the variable PYTHONPATH does not have it: so are a kernel's mounted wheels found."""
    (tmp_path / "only_here.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    environment = os.environ | {"PYTHONPATH": multi_gpu.inherited_path()}
    done = subprocess.run([sys.executable, "-c", "import only_here, siimcovid"], env=environment, check=False)
    assert done.returncode == 0


def test_a_failed_process_is_an_error(runs, tmp_path, monkeypatch):
    one, _ = runs
    images = competition.read_index(one.parent / "index.csv").assign(study_label=None)
    with pytest.raises(RuntimeError, match=r"stage study in 2 processes.*no images to train on") as caught:
        multi_gpu.fit("study", two_processes.few_steps("study"), images, one / "cache", None, tmp_path, processes=2)
    assert not is_out_of_memory(caught.value)
    assert not list(tmp_path.glob("study.*"))


def test_a_killed_process_is_taken_for_a_lack_of_memory(tmp_path, monkeypatch):
    """One of two is killed as it starts."""
    (tmp_path / "sitecustomize.py").write_text(
        'import os, signal\nif os.environ.get("RANK") == "1":\n    os.kill(os.getpid(), signal.SIGKILL)\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "study.job.json").write_text("{}")
    with pytest.raises(RuntimeError, match="killed without a word") as caught:
        multi_gpu.run_processes("study", tmp_path / "study.job.json", 2)
    assert is_out_of_memory(caught.value)
