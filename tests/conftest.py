"""Fixtures that several test files share, and what a run of the tests left out."""

import gc
import os
import re
from collections import Counter
from pathlib import Path

import pytest

# exporting takes a second for each model: test_onnx_engine.py asks for the engine that users have
os.environ["SIIMCOVID_ENGINE"] = "pytorch"
# a million objects are imported that stay: see pytest_collection_finish
gc.disable()
# before torch is imported: with more, a run's plan may train models in processes that no test can reach into
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def real() -> Path:
    """The folder of real radiographs, labels and DICOM files that may lie beside the repository."""
    folder = Path(__file__).parents[2] / "shared" / "real"
    if not folder.is_dir():
        pytest.skip(f"no real material at {folder.name}/ beside the repository")
    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with the most slow tests come first, so that processes end together; what is for a GPU waits for one."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])  # a stable sort: the order within a file stays
    gpu = [item for item in items if item.get_closest_marker("gpu")]
    if gpu and not _has_gpu():
        for item in gpu:
            item.add_marker(pytest.mark.skip(reason="no GPU that PyTorch can use"))


def pytest_collection_finish() -> None:
    """Spare each training's collection of garbage the half second that a look at every imported module takes."""
    gc.freeze()
    gc.enable()


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """What this run left out, and why: one line for each reason."""
    reasons: Counter[str] = Counter()
    for report in terminalreporter.stats.get("skipped", ()):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reasons[re.sub(r"^Skipped: ", "", reason)] += 1
    if chosen := config.getoption("markexpr"):
        terminalreporter.write_line(f"left out: what -m '{chosen}' excludes; `make test` runs it")
    for reason, count in reasons.most_common():
        terminalreporter.write_line(f"left out: {count} test{'s' * (count > 1)}, {reason}")
