"""The benchmark's run from first to last: which machine, every work in turn, one table, one JSON file."""

import importlib
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import torch

from siimcovid.apps.benchmarks import WORKS, Measured
from siimcovid.core.errors import InputError
from siimcovid.core.files import write_json
from siimcovid.core.processes import processors


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    model = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    except OSError:  # no Linux
        pass
    return {
        "processor": model,
        "cores": processors(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "load_before": round(os.getloadavg()[0], 1),  # above 0.5 something else was running
    }


def run(only: Sequence[str] = (), out: Path | None = None) -> dict[str, Any]:
    """Measure the works named in `only` (all without it), print the table, write `out`; returns what it holds.

    Raises InputError for an unknown name, AssertionError where ours does not give the baseline's result.
    """
    unknown = [name for name in only if name not in WORKS]
    if unknown:
        raise InputError(f"no benchmark {unknown[0]!r}; choose from {', '.join(WORKS)}")
    cv2.setNumThreads(1)
    found: dict[str, Any] = {"machine": machine()}
    print(", ".join(f"{key} {value}" for key, value in found["machine"].items()))
    print(row("work", "baseline", "ours", "ratio", "floor"))
    for name, module in WORKS.items():
        if not only or name in only:
            measured: Measured = getattr(importlib.import_module(f"siimcovid.apps.benchmarks.{module}"), name)()
            found[name] = measured.as_dict()
            print_line(name, measured)
    if out:
        write_json(out, found)
        print(out)
    return found


def print_line(name: str, measured: Measured) -> None:
    """A line of the table, and what it is about below it."""
    floor = ", ".join(f"{what} {seconds(value)}" for what, value in measured.floor.items()) or "-"
    print(row(name, seconds(measured.baseline_s), seconds(measured.ours_s), f"{measured.ratio:.1f}", floor))
    print(f"    {measured.work}, {measured.clock} seconds per {measured.unit}, against {measured.baseline}", flush=True)
    for what, value in measured.notes.items():
        print(f"    {what}: {value:.3g}", flush=True)


def row(work: str, baseline: str, ours: str, ratio: str, floor: str) -> str:
    return f"{work:22s} {baseline:>9s} {ours:>9s} {ratio:>7s}  {floor}"


def seconds(value: float) -> str:
    """Seconds with three figures."""
    return f"{value:#.3g}" if value < 100 else f"{value:.0f}"
