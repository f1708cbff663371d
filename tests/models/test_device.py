"""The device: a GPU counts when an operation on it has succeeded."""

import pytest
import torch
from siimcovid.models.device import default_device


def test_the_cpu_without_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert default_device() == torch.device("cpu")


def test_a_gpu_that_runs_nothing_is_left_alone(monkeypatch):
    """As Kaggle's P100 with a torch that has no kernels for it: available, and the first operation fails."""

    def fail(*arguments, **named):
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nmore lines")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "ones", fail)
    with pytest.warns(RuntimeWarning, match="no kernel image is available for execution on the device.; the CPU"):
        assert default_device() == torch.device("cpu")


def test_a_gpu_that_works(monkeypatch):
    real = torch.ones
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "ones", lambda *shape, device: real(*shape))
    assert default_device() == torch.device("cuda")
