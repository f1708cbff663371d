"""One function decides the device, after a real operation on it has succeeded."""

import re
from pathlib import Path

import pytest
import torch

import siimcovid
from siimcovid.core import device

KERNELS = "CUDA error: no kernel image is available for execution on the device\nCUDA kernel errors might be …"


@pytest.fixture
def gpus(monkeypatch):
    """Pretend that there are so many GPUs, of which those of `failing` cannot run an operation."""

    def pretend(count: int, failing=(), rank=None, available=lambda: True):
        def try_gpu(index):
            if index in failing:
                raise RuntimeError(KERNELS)

        monkeypatch.setattr(torch.cuda, "is_available", available)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"Tesla P100 number {index}")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (6, 0))
        monkeypatch.setattr(device, "try_gpu", try_gpu)
        monkeypatch.delenv("LOCAL_RANK", raising=False)
        if rank is not None:
            monkeypatch.setenv("LOCAL_RANK", str(rank))
        device._tested.cache_clear()

    yield pretend
    monkeypatch.undo()
    device._tested.cache_clear()


@pytest.mark.parametrize(
    ("count", "failing", "rank", "usable"),
    [
        (0, (), None, 0),
        (1, (), None, 1),
        (2, (), None, 2),
        (1, (0,), None, 0),
        (2, (0,), None, 0),
        (2, (1,), None, 1),  # the first still works
        (2, (1,), 0, 2),  # a process of a launch tries its own
        (2, (1,), 1, 0),
    ],
)
def test_a_gpu_counts_when_it_can_run_an_operation(gpus, capsys, count, failing, rank, usable):
    gpus(count, failing, rank)
    assert device.gpu_count() == usable
    assert device.choose_device() == torch.device("cuda" if usable else "cpu")
    fails = usable < count
    assert bool(device.gpu_fault()) == fails
    if fails:
        said = capsys.readouterr().err
        assert f"Tesla P100 number {failing[0]} (sm_60)" in said
        assert "no kernel image is available" in device.gpu_fault()
        assert len(said.splitlines()) == 1


def test_a_driver_that_raises_is_no_gpu(gpus):
    def broken():
        raise RuntimeError("CUDA driver initialization failed")

    gpus(1, available=broken)
    assert device.choose_device().type == "cpu"
    assert "driver initialization" in device.gpu_fault()


def test_the_operation_fails_where_there_is_no_gpu():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises((RuntimeError, AssertionError)):
        device.try_gpu(0)


def test_nothing_else_asks_cuda_whether_it_is_there():
    package = Path(siimcovid.__file__).parent
    asking = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if re.search(r"cuda\.(is_available|device_count)\(", path.read_text(encoding="utf-8"))
    }
    assert asking == {"core/device.py"}


@pytest.mark.parametrize(("wanted", "count", "processes"), [(None, 0, 1), (None, 2, 2), ("", 2, 2), ("2", 0, 2)])
def test_a_process_for_each_gpu_or_as_many_as_are_asked_for(gpus, monkeypatch, wanted, count, processes):
    gpus(count)
    monkeypatch.delenv("SIIMCOVID_PROCESSES", raising=False)
    if wanted is not None:
        monkeypatch.setenv("SIIMCOVID_PROCESSES", wanted)
    assert device.training_processes() == processes
