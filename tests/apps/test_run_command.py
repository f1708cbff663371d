"""`siimcovid run`: of what a notebook prints, the lines that tell something; what is missing is a sentence."""

import logging

import pytest

from siimcovid.apps.command_line import main
from siimcovid.apps.commands.run_command import Console, is_worth_a_line


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("33 images prepared, 0 could not be", True),
        ("OUT OF TIME: yolo predicts no image", True),
        ("DEGRADED plan: 50% of it; instead: nothing", True),
        ("", False),
        ("   ", False),
        ("predict rcnn:  67%|██████▋   | 2/3 [00:00<00:00, 13.72batch/s]", False),
        ("train rcnn: 3batch [00:01, 2.1batch/s]", False),
        ("<Figure size 640x480 with 1 Axes>", False),
        ("/x/y.py:3: UserWarning: something", False),
        ("rcnn 1/9  loss .412", True),
        ("rcnn 2/9  loss .412", False),
        ("rcnn 3/9  loss .412  AP .312", True),
        ("rcnn 9/9  loss .412", True),
        ("study.1 7/40  loss .412", False),
        ("study.1 40/40  loss .412", True),
    ],
)
def test_lines_that_are_shown(line, shown):
    assert is_worth_a_line(line) == shown


def test_a_section_has_one_heading(capsys):
    console = Console(["Title", "Data", "Data", "Plan"])
    for number in (1, 2, 3, 4):
        console.emit(logging.LogRecord("papermill", logging.INFO, "", 0, f"Executing Cell {number}------", (), None))
        console.write("half a ")
        console.write("line\rand 10%|█ | 1/10\n")
    assert capsys.readouterr().out.splitlines() == [
        *("## Title", "  half a line", "## Data", "  half a line", "  half a line", "## Plan", "  half a line")
    ]


def test_a_missing_notebook_is_a_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["run", "competition", "--out", "out"]) == 2
    assert "siim_covid19.ipynb does not exist" in capsys.readouterr().err


@pytest.mark.parametrize(("text", "said"), [(None, "holds no run.json"), ("{", "is damaged"), ("[]", "is damaged")])
def test_scoreboard_of_no_run_is_a_sentence(tmp_path, capsys, text, said):
    if text is not None:
        (tmp_path / "run.json").write_text(text)
    assert main(["scoreboard", str(tmp_path)]) == 2
    assert said in capsys.readouterr().err
