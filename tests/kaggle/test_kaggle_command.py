"""`siimcovid kaggle`: which images a check runs on, what each action is given, and its exit code."""

import json
from pathlib import Path

import pytest

from siimcovid.apps.command_line import main
from siimcovid.core.errors import InputError
from siimcovid.kaggle import docker_image, kernel_runs, rehearsal
from siimcovid.kaggle.rehearsal_run import Verdict
from support.bundle_files import write_bundles


@pytest.fixture
def checked(monkeypatch) -> list[dict]:
    """What `check` was called with; a run without faults."""
    calls = []

    def check(bundles, scratch, **options):
        calls.append(options)
        return [Verdict("a layout")]

    monkeypatch.setattr(rehearsal, "check", check)
    return calls


def test_a_check_runs_on_the_newest_and_the_oldest_image(checked, monkeypatch, capsys):
    monkeypatch.setattr(docker_image, "find_python", lambda version: Path("python"))
    assert main(["kaggle", "check"]) == 0
    assert [options["image"].name for options in checked] == ["2026-06", "2025-09"]
    assert [options["all_layouts"] for options in checked] == [True, False]  # mounts do not depend on the image
    assert capsys.readouterr().out.endswith("on the image of 2026-06, the image of 2025-09\n")


def test_an_image_whose_python_is_missing_is_named_and_left_out(checked, monkeypatch, capsys):
    def find_python(version):
        if version == "3.12":
            raise InputError("no Python 3.12 is installed")
        return Path("python")

    monkeypatch.setattr(docker_image, "find_python", find_python)
    assert main(["kaggle", "check"]) == 0
    assert [options["image"].name for options in checked] == ["2025-09"]
    printed = capsys.readouterr().out
    assert "not run: the image of 2026-06: no Python 3.12 is installed" in printed
    assert "on the image of 2025-09" in printed
    assert main(["kaggle", "check", "--image", "2026"]) != 0  # asked for by name it is an error


def test_this_environment_with_two_ranks(checked, capsys):
    assert main(["kaggle", "check", "--image", "here", "--gpus", "2"]) == 0
    (options,) = checked
    assert (options["image"], options["ranks"]) == (None, 2)
    assert "on this environment" in capsys.readouterr().out


def test_a_fault_is_an_exit_code(monkeypatch, capsys):
    monkeypatch.setattr(rehearsal, "check", lambda *arguments, **options: [Verdict("a layout", ["no submission.csv"])])
    assert main(["kaggle", "check", "--image", "here"]) == 1
    assert "kaggle-check FAILED" in capsys.readouterr().out


@pytest.mark.parametrize(("state", "code"), [("complete", 0), ("running", 0), ("error", 1)])
def test_the_status_names_the_kernel_that_was_built(tmp_path, monkeypatch, capsys, state, code):
    out = write_bundles(tmp_path, "somebody")
    monkeypatch.setattr(kernel_runs, "kernel_status", lambda kernel: (state, "why" if code else ""))
    assert main(["kaggle", "status", "--out", str(out)]) == code
    kernel = json.loads((out / "kernel" / "kernel-metadata.json").read_text())["id"]
    assert capsys.readouterr().out == f"{kernel}: {state}{': why' if code else ''}\n"
    assert main(["kaggle", "status", "--out", str(out), "--kernel", "2"]) not in (0, 1)  # not built
