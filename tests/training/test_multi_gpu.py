"""`torchrun` on two CPU processes (gloo): the same gradients, images and tables as one process."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from siimcovid.core.overrides import override
from siimcovid.core.presets import SMALL
from siimcovid.data import competition
from siimcovid.models import checkpoints
from siimcovid.models.checkpoints import build_model, read_tensors
from siimcovid.synthetic.demo_competition import write_competition
from siimcovid.training import multi_gpu
from support import launched


def test_children_import_whatever_their_parent_can(tmp_path, monkeypatch):
    """As in a kernel, where the package and the wheels are on sys.path alone."""
    environments = []

    def failing(command, env, check):
        environments.append(env)
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(multi_gpu.subprocess, "run", failing)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "wheels")])
    images = pd.DataFrame({"image_id": ["a"], "boxes": [[]]})
    with pytest.raises(RuntimeError, match="in 2 processes failed with exit code 1"):
        multi_gpu.fit("study", SMALL, images, tmp_path, None, tmp_path / "out", processes=2)
    path = environments[0]["PYTHONPATH"].split(os.pathsep)
    assert path[0] == str(Path(multi_gpu.__file__).parents[2])
    assert path[-1] == str(tmp_path / "wheels")  # last, so that what is installed goes before it
    assert set(filter(None, sys.path)) <= set(path)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> tuple[Path, Path]:
    """The folders of the same work done by one process and by two."""
    folder = tmp_path_factory.mktemp("launch")
    write_competition(folder / "data", train_studies=10, test_studies=1, seed=0, scale=0.05, workers=1)
    images = competition.load(folder / "data", splits=("train",)).images.head(9)  # eight and a damaged one
    damaged = images["path"].iloc[3]
    Path(damaged).write_bytes(Path(damaged).read_bytes()[:200])
    competition.write_index(images, folder / "index.csv")
    launched.work(folder, folder / "one")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", launched.__file__]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(
        [*command, folder, folder / "two"], env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-6000:]
    return folder / "one", folder / "two"


@pytest.mark.parametrize("stage", checkpoints.STAGES)
def test_the_same_steps(stage, runs):
    """Every weight after the updates, to float32's rounding; running statistics are each process's own."""
    one, two = (read_tensors(out / f"{stage}.safetensors")[0] for out in runs)
    weights = [name for name, _ in build_model(stage, getattr(launched.few_steps(stage), stage)).named_parameters()]
    assert len(weights) > 3
    for name in weights:
        torch.testing.assert_close(one[name], two[name], rtol=1e-4, atol=1e-5)
    losses = [pd.read_csv(out / f"{stage}.metrics.csv")["loss"] for out in runs]
    assert losses[0].between(1e-6, 1e3).all()


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


def test_a_notebook_trains_in_two_processes(runs, tmp_path, monkeypatch):
    """launch.fit from a single process: the batch is shared; the weights are those of one process."""
    one, _ = runs
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    images = competition.read_index(one.parent / "index.csv")
    failed = pd.read_csv(one / "cache" / "failures.csv", dtype=str)["image_id"]
    samples = images[~images["image_id"].isin(failed)].reset_index(drop=True)
    preset = override(launched.few_steps("study"), {"study.training.batch": 4})
    path = multi_gpu.fit("study", preset, samples, one / "cache", None, tmp_path, processes=2)
    expected, found = read_tensors(one / "study.safetensors")[0], read_tensors(path)[0]
    for name in ("head.0.weight", "head.3.bias"):
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-5)
    assert not list(tmp_path.glob("study.job*")) + list(tmp_path.glob("study.images*"))


def test_a_failed_process_is_an_error(runs, tmp_path, monkeypatch):
    one, _ = runs
    images = competition.read_index(one.parent / "index.csv").assign(study_label=None)
    with pytest.raises(RuntimeError, match="stage study in 2 processes"):
        multi_gpu.fit("study", launched.few_steps("study"), images, one / "cache", None, tmp_path, processes=2)
