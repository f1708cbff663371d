"""`siimcovid run`: of what a notebook prints, the lines that tell something; what is missing is a sentence."""

import logging

import pytest

from siimcovid.apps.command_line import main
from siimcovid.apps.commands import run_command
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
        ("rcnn 5/9  loss .412  AP .312", True),
        ("rcnn 9/9  loss .412", True),
        ("study.1 7/40  loss .412", False),
        ("study.1 20/40  loss .412", True),
        ("DEGRADED: nothing", True),
        ("Dropped to fit the hours: nothing", False),
        ("                id            PredictionString", False),
        ("8c9b97840aa4_image none 0.16279247 0 0 1 1 opacity 0.49", False),
        ("8c9b97840aa4_image: no pixels", True),
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


SAMPLE = "id,PredictionString\na_study,negative 1 0 0 1 1\nb_image,none 1 0 0 1 1\n"


@pytest.mark.parametrize(
    ("sample", "submission", "completed", "fault"),
    [
        (SAMPLE, SAMPLE, None, None),
        ("", SAMPLE, SAMPLE, None),  # the run completed the sample
        (SAMPLE, None, None, "submission.csv"),
        (SAMPLE, SAMPLE[:20], None, "the id is missing"),
        (SAMPLE, SAMPLE.replace("none 1", "none one"), None, "line 3: b_image"),
        ("", "id,PredictionString\n", None, "is no sample submission"),
        (None, "id,PredictionString\n", None, "no ids were found"),
    ],
)
def test_status_tells_whether_a_valid_submission_was_written(
    tmp_path, monkeypatch, capsys, sample, submission, completed, fault
):
    """However much of the run was degraded, which the notebook's last cell names."""
    out, competition, notebook = tmp_path / "out", tmp_path / "competition", tmp_path / "kernel.ipynb"
    files = {competition / "sample_submission.csv": sample, out / "submission.csv": submission, notebook: "{}"}
    files[out / "repaired" / "sample_submission.csv"] = completed
    competition.mkdir()
    for path, text in files.items():
        if text is not None:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
    monkeypatch.setattr(run_command, "_execute", lambda *arguments: True)
    monkeypatch.setattr(run_command, "_finish", lambda *arguments: None)
    status = main(["run", str(competition), "--out", str(out), "--notebook", str(notebook)])
    assert status == (1 if fault else 0)
    assert (fault or "") in capsys.readouterr().err


def test_the_kernel_says_nothing_to_the_terminal(tmp_path, capfd):
    """What a cell prints comes through the console; ipykernel's own warnings do not stand between it."""
    import nbformat

    cell = nbformat.v4.new_code_cell("print('one line')")
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "in.ipynb")
    assert run_command._execute(tmp_path / "in.ipynb", tmp_path / "out.ipynb", {})
    printed = capfd.readouterr()
    assert "one line" in printed.out
    assert "WARNING" not in printed.out + printed.err
