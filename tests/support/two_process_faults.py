"""Faults in the processes that train a stage together, and the launch that puts them there.

For tests/kernel/test_two_process_faults.py. The launch is torchrun's own agent and the processes meet through gloo, but
they are forks of a server that has imported everything, which spares the seconds of importing.
"""

import errno
import gc
import math
import os
import signal
import subprocess
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from siimcovid.data.competition import read_index
from siimcovid.models import study_classifier
from siimcovid.training import multi_gpu_child, train_stage, training_loop
from support.fork_server import fresh_fork_server

AGAIN = "half the batch, accumulated to the same, until it fits"
GIVEN = "the study model of WEIGHTS_DIR is taken"


@dataclass(frozen=True)
class ProcessFault:
    """A row of the table: what happens in one process (`rank`; None is both) of two, and what becomes of it."""

    name: str
    happens: str
    named: str  # stands in the last cell or in run.json; "" where nothing is lost
    act: Callable[["ProcessFault", Path], None]  # in the process, with the folder of weights
    rank: int | None = 1
    step: int = 0  # act before this step of training, from 1; 0: before all
    once: bool = False  # in the first launch alone
    epochs: int = 2  # trained in the end; 0: the given weights are used


def kill(which: signal.Signals) -> Callable:
    return lambda fault, out: os.kill(os.getpid(), which)


def leave(fault: ProcessFault, out: Path) -> None:
    os._exit(3)


def fail(error: Callable[[], BaseException]) -> Callable:
    def act(fault: ProcessFault, out: Path) -> None:
        raise error()

    return act


def not_finite(good: int) -> Callable:
    """The loss of this process is NaN after so many good steps; an epoch has two."""

    def act(fault: ProcessFault, out: Path) -> None:
        forward, steps = study_classifier.Study.forward, []

        def broken(model, batch):
            steps.append(1)
            factor = math.nan if len(steps) > good else 1.0
            return {name: loss * factor for name, loss in forward(model, batch).items()}

        study_classifier.Study.forward = broken

    return act


def full_disk(ending: str) -> Callable:
    """Nothing that is named so can be written."""

    def act(fault: ProcessFault, out: Path) -> None:
        replace = os.replace

        def full(source, target):
            if str(target).endswith(ending):
                raise OSError(errno.ENOSPC, "No space left on device", str(target))
            replace(source, target)

        os.replace = full

    return act


def torn_pictures(fault: ProcessFault, out: Path) -> None:
    """Of the images to train on."""
    images = read_index(out / "study.images.csv")
    for name in images.loc[images["split"] == "train", "image_id"]:
        path = out.parent / "cache" / f"{name}.png"
        path.write_bytes(path.read_bytes()[:50])


def not_met(fault: ProcessFault, out: Path) -> None:
    """The processes cannot reach one another."""
    os.environ["GLOO_SOCKET_IFNAME"] = "nowhere0"


def torn_state(fault: ProcessFault, out: Path) -> None:
    (out / "study.resume.pt").write_bytes(b"PK\x03\x04 the beginning of a state")


def disk_fails_to_read(fault: ProcessFault, out: Path) -> None:
    def read_state(*arguments):
        raise OSError(errno.EIO, "Input/output error", "study.resume.pt")

    (out / "study.resume.pt").touch()
    training_loop.read_state = read_state


def runtime(text: str) -> Callable:
    return fail(lambda: RuntimeError(text))


MEMORY, SILENT = "out of memory", "killed without a word"
CUDA = "CUDA out of memory. Tried to allocate 2.00 GiB"

FAULTS = [
    ProcessFault("one is killed as it starts", AGAIN, SILENT, kill(signal.SIGKILL), once=True),
    ProcessFault("the first is killed as it starts", AGAIN, SILENT, kill(signal.SIGKILL), 0, once=True),
    ProcessFault("one is killed in a step", AGAIN, SILENT, kill(signal.SIGKILL), step=2, once=True),
    ProcessFault("the first is killed in its second epoch", AGAIN, SILENT, kill(signal.SIGKILL), 0, 3, True),
    ProcessFault("one is ended by SIGTERM", AGAIN, SILENT, kill(signal.SIGTERM), step=1, once=True),
    ProcessFault("one exits without a word", AGAIN, SILENT, leave, step=1, once=True),
    ProcessFault("one is killed at every start", GIVEN, "single images", kill(signal.SIGKILL), epochs=0),
    ProcessFault("CUDA's memory is short in one", AGAIN, MEMORY, runtime(CUDA), step=2, once=True),
    ProcessFault("CUDA's memory is short in the first", AGAIN, MEMORY, runtime(CUDA), 0, 1, True),
    ProcessFault(
        "cuBLAS lacks memory in one", AGAIN, "CUBLAS", runtime("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"), 1, 1, True
    ),
    ProcessFault(
        "cuDNN lacks memory in one", AGAIN, "CUDNN", runtime("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED"), 1, 3, True
    ),
    ProcessFault("the machine's memory is short in one", AGAIN, "MemoryError", fail(MemoryError), 1, 1, True),
    ProcessFault("memory is short for a single image", GIVEN, "single images", runtime(CUDA), None, 1, epochs=0),
    ProcessFault("another error in one", GIVEN, "an error of its own", runtime("an error of its own"), 1, 1, epochs=0),
    ProcessFault(
        "another error in the first", GIVEN, "an error of its own", runtime("an error of its own"), 0, 3, epochs=0
    ),
    ProcessFault("a package is missing in one", GIVEN, "no module", fail(lambda: ImportError("no module")), epochs=0),
    ProcessFault(
        "the loss is NaN in one, in the first epoch", GIVEN, "the loss of stage study is nan", not_finite(0), epochs=0
    ),
    ProcessFault("the loss is NaN in one, in the second epoch", "the first epoch is kept", "", not_finite(2), epochs=1),
    ProcessFault("the disk is full for the state", GIVEN, "No space left", full_disk("resume.pt"), 0, epochs=0),
    ProcessFault("the disk is full for the model", GIVEN, "No space left", full_disk("study.safetensors"), 0, epochs=0),
    ProcessFault("the pictures in the cache are torn", GIVEN, "is damaged: delete it", torn_pictures, 0, epochs=0),
    ProcessFault("the processes do not reach each other", GIVEN, "nowhere0", not_met, None, epochs=0),
    ProcessFault("the state of an earlier run is torn", "it is trained anew", "", torn_state, 0),
    ProcessFault(
        "the state of an earlier run cannot be read", GIVEN, "Input/output error", disk_fails_to_read, None, epochs=0
    ),
]
BY_NAME = {fault.name: fault for fault in FAULTS}


def run_job(path: str, name: str) -> None:
    """One of two processes: multi_gpu_child.train with a fault."""
    gc.freeze()  # what is imported is no garbage
    fault, out = BY_NAME[name], Path(path).parent
    if fault.rank in (None, int(os.environ["RANK"])):
        owner, function = (training_loop.TrainingLoop, "backward") if fault.step else (train_stage, "fit")
        real, calls = getattr(owner, function), []

        def watched(*arguments, **options):
            calls.append(1)
            if len(calls) == max(1, fault.step) and not (fault.once and (out / "fired").exists()):
                (out / "fired").touch()
                fault.act(fault, out)
            return real(*arguments, **options)

        setattr(owner, function, watched)
    multi_gpu_child.train(Path(path))


def prepare_server() -> None:
    """Start the server of the forks, with everything imported."""
    fresh_fork_server(["siimcovid.training.multi_gpu", "siimcovid.models.study_classifier", "accelerate"])


def launch(name: str, command: list[str], **_: object) -> subprocess.CompletedProcess:
    """In the place of subprocess.run in multi_gpu: two processes with a fault."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=2,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="127.0.0.1",
        max_restarts=0,
        monitor_interval=0.05,
        start_method="forkserver",
    )
    handlers = {
        which: signal.getsignal(which) for which in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
    }
    try:
        elastic_launch(config, run_job)(command[-1], name)
    except ChildFailedError:
        return subprocess.CompletedProcess(command, 1)
    finally:  # the agent sets its own
        for which, handler in handlers.items():
            signal.signal(which, handler)
    return subprocess.CompletedProcess(command, 0)
