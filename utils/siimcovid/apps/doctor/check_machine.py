"""Processors, memory, disk and graphics cards."""

import importlib.metadata as metadata
import os
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

from siimcovid.apps.doctor.check_result import MISSING, NOTE, OK, Finding, Surroundings

GIGABYTE = 1 << 30

#: Gigabytes without which the small preset gets into trouble: the training of one stage beside its loaders; and the
#: virtual environment (6) with the cache and the checkpoints of a run.
LEAST_MEMORY, LEAST_DISK = 4, 10

#: Gigabytes of a graphics card that the full preset is made for: Kaggle's T4 and P100 have 16.
FULL_PRESET_CARD = 15

CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def processors(around: Surroundings) -> list[Finding]:
    """Cores that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return [Finding(OK, f"{cores} processor core{'s' * (cores > 1)}")]


def memory(around: Surroundings) -> list[Finding]:
    """Memory of the machine, or of the container around us."""
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return [Finding(NOTE, "this system does not say how much memory it has")]
    with suppress(OSError, ValueError):  # no container, or one without a limit ("max")
        total = min(total, int(CGROUP_LIMIT.read_text()))
    said = f"{total / GIGABYTE:.0f} GB of memory"
    if total < LEAST_MEMORY * GIGABYTE:
        way_out = "close what else runs, or lower the batch: --set rcnn.training.batch=2"
        return [Finding(MISSING, f"{said}: training needs {LEAST_MEMORY}", way_out)]
    return [Finding(OK, said)]


def disk(around: Surroundings) -> list[Finding]:
    """Free disk where we are."""
    free = shutil.disk_usage(Path.cwd()).free
    said = f"{free / GIGABYTE:.0f} GB free in {Path.cwd()}"
    if free < LEAST_DISK * GIGABYTE:
        return [Finding(MISSING, f"{said}: {LEAST_DISK} are needed", "remove old runs, or work on another disk")]
    return [Finding(OK, said)]


def gpus(around: Surroundings) -> list[Finding]:
    """Graphics cards and their memory, by nvidia-smi; torch takes seconds to import."""
    cards = _cards()
    if not cards:
        said = "no GPU: the small preset trains on the processor, the full preset needs a card of 16 GB"
        return [Finding(NOTE, said, "--preset small here, or run the notebook on Kaggle (GPU T4 x2)")]
    found = []
    for name, megabytes in cards:
        said = f"GPU {name}, {megabytes / 1024:.0f} GB"
        if megabytes < FULL_PRESET_CARD * 1024:
            way_out = "--preset small, or a smaller batch with --set rcnn.training.batch=2"
            found.append(Finding(NOTE, f"{said}: little for the full preset", way_out))
        else:
            found.append(Finding(OK, said))
    try:
        processor_only = metadata.version("torch").endswith("+cpu")
    except metadata.PackageNotFoundError:  # the packages' check says so
        processor_only = False
    if processor_only:
        way_out = "pip install torch torchvision from https://download.pytorch.org/whl/ for your CUDA"
        found.append(Finding(MISSING, "torch is the build without CUDA, so the GPU would idle", way_out))
    return found


def _cards() -> list[tuple[str, float]]:
    """Name and megabytes of each card; none where there is no nvidia-smi or it fails."""
    if not shutil.which("nvidia-smi"):
        return []
    command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
        rows = [line.rsplit(",", 1) for line in said.splitlines() if "," in line]
        return [(name.strip(), float(megabytes)) for name, megabytes in rows]
    except (OSError, ValueError, subprocess.SubprocessError):
        return []
