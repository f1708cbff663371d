"""Which device the models run on, decided once, after a real operation on it.

`torch.cuda.is_available()` is True for a GPU that the installed torch has no kernels for (Kaggle's P100 under a torch
built for sm_70 and later): the first operation dies with "no kernel image is available for execution on the device".
So nothing else asks CUDA whether it is there. torch and accelerate are imported by the functions only.
"""

import os
import sys
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from accelerate import PartialState


def choose_device() -> "torch.device":
    """The GPU (of this process, where a launch has one for each), where it works; else the CPU."""
    import torch

    return torch.device("cuda" if gpu_count() else "cpu")


def gpu_count() -> int:
    """Number of GPUs that can be used: those before the first that fails, which is printed to stderr once.

    A process of a launch (LOCAL_RANK is set) tries its own GPU alone; where that fails it has none.
    """
    return _tested()[0]


def gpu_fault() -> str | None:
    """Why the GPU that is there is not used: its name and its error; None where it works, or where there is none."""
    return _tested()[1]


@cache  # the answer does not change while the process lives, and asking takes a CUDA context
def _tested() -> tuple[int, str | None]:
    import torch

    try:
        if not torch.cuda.is_available() or not (count := torch.cuda.device_count()):
            return 0, None
    except Exception as error:  # a broken driver raises several kinds
        return _refused("a GPU", error)
    own = os.environ.get("LOCAL_RANK", "")
    for index in [int(own)] if own.isdigit() and int(own) < count else range(count):
        try:
            try_gpu(index)
        except Exception as error:  # RuntimeError, AcceleratorError, OutOfMemoryError, cuDNN's own
            return _refused(gpu_name(index), error, 0 if own else index)
    return count, None


def try_gpu(index: int) -> None:
    """Run what the models need on a GPU: a convolution with its gradient, and a copy back.

    Raises what CUDA raises, or RuntimeError for a wrong result.
    """
    import torch

    pixels = torch.ones(1, 1, 4, 4, device=f"cuda:{index}", requires_grad=True)
    torch.nn.functional.conv2d(pixels, torch.ones(1, 1, 3, 3, device=pixels.device)).sum().backward()
    torch.cuda.synchronize(index)
    total = float(pixels.grad.sum().cpu())
    if total != 36.0:  # four outputs of nine ones each
        raise RuntimeError(f"a convolution's gradient is {total} instead of 36")


def visible_gpu(index: int) -> str:
    """What CUDA_VISIBLE_DEVICES must be for a process that is to see this process's GPU number `index` alone."""
    visible = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    return visible[index] if index < len(visible) and visible[index] else str(index)


def gpu_name(index: int) -> str:
    """A GPU's name and architecture as the driver gives them."""
    import torch

    try:
        major, minor = torch.cuda.get_device_capability(index)
        return f"{torch.cuda.get_device_name(index)} (sm_{major}{minor})"
    except Exception:  # a GPU that fails may fail here too
        return "a GPU"


def installed_gpus() -> int:
    """How many GPUs CUDA finds, whether or not they can be used; for a report, never for a choice of the device."""
    import torch

    try:
        return torch.cuda.device_count()
    except Exception:  # a broken driver raises several kinds
        return 0


def _refused(name: str, error: Exception, usable: int = 0) -> tuple[int, str]:
    reason = next(iter(str(error).splitlines()), "") or type(error).__name__
    fault = f"{name} fails its first operation under torch: {reason}"
    print(f"{fault}; {f'{usable} other GPU' if usable else 'the CPU'} is used instead", file=sys.stderr)
    return usable, fault


def launched_as() -> "PartialState":
    """Which process of how many this is, in a launch by torchrun or `accelerate launch`; else the only one.

    accelerate counts processes on CPUs only where it is told to use the CPU, and keeps the first answer.
    """
    from accelerate import PartialState

    return PartialState(cpu=not gpu_count())


def training_processes() -> int:
    """Number of processes that train a stage together: one for each GPU, and one without.

    SIIMCOVID_PROCESSES in the environment asks for others, which is how a machine without GPUs rehearses two.
    """
    return int(os.environ.get("SIIMCOVID_PROCESSES") or max(1, gpu_count()))
