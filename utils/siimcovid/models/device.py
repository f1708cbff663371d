"""Which device the models run on, and which process of a distributed launch this is."""

import os
import warnings

import torch
from accelerate import PartialState


def default_device() -> torch.device:
    """This process's GPU, after a real operation on it has succeeded; else the CPU.

    `torch.cuda.is_available()` alone is not enough: on a GPU that this build of torch has no kernels for it is True,
    and the first operation fails. That is reported by a warning.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    try:
        torch.ones(1, device="cuda").add_(1).item()
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        warnings.warn(f"the GPU cannot be used ({reason}); the CPU is used instead", RuntimeWarning, stacklevel=2)
        return torch.device("cpu")
    return torch.device("cuda")


def launched_as() -> PartialState:
    """Which process of how many this is, in a launch by torchrun or `accelerate launch`; else the only one.

    accelerate counts processes on CPUs only where it is told to use the CPU, and keeps the first answer.
    """
    return PartialState(cpu=not torch.cuda.is_available())


def training_processes() -> int:
    """Number of processes that train a stage together: one for each GPU, and one without.

    SIIMCOVID_PROCESSES in the environment asks for others, which is how a machine without GPUs rehearses two.
    """
    return int(os.environ.get("SIIMCOVID_PROCESSES") or max(1, torch.cuda.device_count()))
