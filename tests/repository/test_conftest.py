"""What a run of the tests says it left out, alone and with two processes."""

import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).parents[1] / "conftest.py"

FIRST = """
import pytest
def test_quick(): pass
def test_no_material(real): pass
def test_no_tool(): pytest.skip("no such tool")
@pytest.mark.parametrize("number", range(3))
def test_more(number): pytest.skip("no second processor")
"""
SECOND = """
import pytest
@pytest.mark.slow
def test_slow(): pass
"""


@pytest.fixture
def project(tmp_path) -> Path:
    """A project with the same conftest and two files of tests."""
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "conftest.py").write_bytes(CONFTEST.read_bytes())
    (tmp_path / "tests" / "test_first.py").write_text(FIRST)
    (tmp_path / "tests" / "test_second.py").write_text(SECOND)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = slow\n  gpu\n")
    return tmp_path


def run(project: Path, *options: str) -> list[str]:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, env={"PATH": ""})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("options", [(), ("-n", "2", "--dist", "loadfile")])
def test_each_reason_is_a_line(project, options):
    said = [line for line in run(project, *options) if line.startswith("left out")]
    assert said == [
        "left out: 3 tests, no second processor",
        "left out: 1 test, no real material at real/ beside the repository",
        "left out: 1 test, no such tool",
    ]


def test_what_was_chosen_by_a_marker_is_said(project):
    assert "left out: what -m 'not slow' excludes; `make test` runs it" in run(project, "-m", "not slow")


def test_files_with_slow_tests_come_first(project):
    listed = [line for line in run(project, "--collect-only", "-q") if "::" in line]
    assert listed[0] == "tests/test_second.py::test_slow"
    assert listed[1] == "tests/test_first.py::test_quick"
