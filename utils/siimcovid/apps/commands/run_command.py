"""`siimcovid run COMPETITION`: executes the notebook on a competition folder, prints its progress, writes the report.

What the notebook shows is in the executed notebook and in report.html; here it is a heading for each section and the
lines that its cells print, without progress bars, and of a model's epochs a few.
"""

import argparse
import logging
import re
import sys
from pathlib import Path

EXAMPLE = "siimcovid run /path/to/siim-covid19-detection --weights runs/pretrained --out runs/mine"

NOTEBOOK = Path("notebooks") / "siim_covid19.ipynb"

#: A line of an epoch: "rcnn 3/9  loss …".
EPOCH = re.compile(r"\S+ +(\d+)/(\d+) +loss\b")

#: Progress bars, figures' names, warnings of libraries, rows of the submission, and of what there is nothing, but for
#: what was degraded.
NOISE = re.compile(
    r"\d+%\||\d+(\.\d+)?\s*(it|batch|image)/s\]|<Figure|Warning\b|^\s+warnings?\.warn"
    r"|^\s*\S+_(image|study) |^\s*id\s+PredictionString|^\s*(?!DEGRADED)\S[^:]*: nothing$"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    from siimcovid.core.presets import PRESETS

    parser.add_argument("competition", type=Path, help="a competition folder: sample_submission.csv, train/, test/")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for everything that is written")
    parser.add_argument("--weights", type=Path, metavar="DIR", help="the weights to start from, or with --infer to use")
    parser.add_argument("--preset", choices=list(PRESETS), default="small", help="default small")
    parser.add_argument("--infer", action="store_true", help="use the trained weights instead of training")
    parser.add_argument("--hours", type=float, default=9.0, help="default 9")
    parser.add_argument("--seed", type=int, help="of the training")
    parser.add_argument("--jobs", type=int, default=0, metavar="N", help="models trained at a time; 0: by the plan")
    parser.add_argument("--strict", action="store_true", help="stop at the first fault")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting of the preset"
    )
    parser.add_argument("--notebook", type=Path, default=NOTEBOOK, metavar="FILE", help=f"default {NOTEBOOK}")


def run(args: argparse.Namespace) -> int:
    """Execute the notebook, write the report, and print the scores and what to do next.

    Returns 0 where a valid submission.csv was written, however much of the run was degraded: the last cell names that,
    and `--strict` stops instead. Returns 1 where the notebook stopped, or the submission is missing or not valid.
    """
    from siimcovid.core.errors import InputError
    from siimcovid.core.overrides import read_settings

    if not args.notebook.is_file():
        raise InputError(f"{args.notebook} does not exist: run in the repository's folder, or name the notebook")
    args.out.mkdir(parents=True, exist_ok=True)
    parameters = {
        "COMPETITION_DIR": str(args.competition),
        "WEIGHTS_DIR": str(args.weights or ""),
        "OUTPUT_DIR": str(args.out),
        "PRESET": args.preset,
        "MODE": "infer" if args.infer else "finetune",
        "HOURS": args.hours,
        "JOBS": args.jobs,
        "SEED": args.seed,
        "OVERRIDES": read_settings(args.set),
        "STRICT": args.strict,
    }
    executed = args.out / args.notebook.name
    if not _execute(args.notebook, executed, parameters):
        print(f"siimcovid run: the notebook stopped; {executed} has what it did", file=sys.stderr)
        return 1
    _finish(args.out, executed)
    if fault := submission_fault(args.out, args.competition):
        print(f"siimcovid run: no valid submission: {fault}", file=sys.stderr)
        return 1
    return 0


def submission_fault(out: Path, competition: Path) -> str | None:
    """Why a run's submission would not be scored; None where it is valid by the competition's sample, or by the one
    that the run made because that was damaged."""
    from siimcovid.core.errors import InputError
    from siimcovid.core.tables import find_table
    from siimcovid.evaluation.submission_validator import validate
    from siimcovid.kernel.kernel_inputs import REPAIRED, SAMPLE

    submission, fault = out / "submission.csv", None
    for sample in filter(None, (find_table(folder, SAMPLE) for folder in (out / REPAIRED, competition))):
        try:
            faults = validate(submission, sample).faults
        except InputError as error:  # not written, or the sample cannot be read
            faults = [str(error)]
        if not faults:
            return None
        fault = f"{submission}, {faults[0]}"
    return fault or f"no ids were found in {competition}"


def _execute(notebook: Path, executed: Path, parameters: dict) -> bool:
    """Execute a notebook, printing what its cells print; False where a cell raised, whose error is printed."""
    import nbformat
    import papermill

    cells = nbformat.read(notebook, as_version=4).cells
    sections, section = [], ""
    for cell in cells:
        if cell.cell_type == "markdown":
            section = cell.source.splitlines()[0].lstrip("# ")
        sections += [section]
        if "parameters" in cell.metadata.get("tags", []):
            sections += [section]  # papermill puts its own cell behind it
    console = Console(sections)
    log = logging.getLogger("papermill")
    before = log.level, log.propagate
    log.addHandler(console)
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        papermill.execute_notebook(
            notebook,
            executed,
            parameters,
            kernel_name="python3",
            progress_bar=False,
            extra_arguments=["--log-level=ERROR"],  # its connection is this machine's own, of which ipykernel warns
            log_output=True,
            stdout_file=console,
            stderr_file=console,
        )
    except papermill.PapermillExecutionError as error:
        print(f"{error.ename}: {error.evalue}", file=sys.stderr)
        return False
    finally:
        log.removeHandler(console)
        log.setLevel(before[0])
        log.propagate = before[1]
    return True


class Console(logging.Handler):
    """Prints a heading for each section of a notebook, and the lines that tell something.

    As papermill's log handler it learns which cell begins, as its stdout_file and stderr_file what the cells print.
    sections: the heading above each cell of the executed notebook.
    """

    def __init__(self, sections: list[str]):
        super().__init__()
        self.sections, self.section, self.rest = sections, "", ""

    def emit(self, record: logging.LogRecord) -> None:
        """Print the heading of the cell that begins, where it is another than before."""
        found = re.match(r"Executing Cell (\d+)", record.getMessage())
        if found and (section := self.sections[int(found[1]) - 1]) != self.section:
            self.section = section
            print(f"\033[1m{section}\033[0m" if sys.stdout.isatty() else f"## {section}", flush=True)

    def write(self, text: str) -> None:
        """Print the whole lines of what a cell printed; the end of an unfinished line waits for its rest."""
        *lines, self.rest = (self.rest + text).replace("\r", "\n").split("\n")
        for line in lines:
            if is_worth_a_line(line):
                print(f"  {line}", flush=True)


def is_worth_a_line(line: str) -> bool:
    """Whether a line is shown: no NOISE, no empty one, and of a model's epochs the first, the middle and the last."""
    if not line.strip() or NOISE.search(line):
        return False
    if found := EPOCH.match(line.strip()):
        number, count = int(found[1]), int(found[2])
        return number in (1, -(-count // 2), count)
    return True


def _finish(out: Path, executed: Path) -> None:
    """Write report.html, and print the scores, where everything lies and what to do next."""
    from siimcovid.apps.commands.scoreboard_command import print_scoreboard
    from siimcovid.core.files import write_text
    from siimcovid.reporting.html.html_report import render, run_page
    from siimcovid.reporting.run_folder import read_run

    report = out / "report.html"
    write_text(report, render(run_page(read_run(out))))
    print()
    print_scoreboard(out)
    print()
    for what, where in (
        ("submission", out / "submission.csv"),
        ("report", f"{report} (open it in a browser; it needs nothing beside it)"),
        ("notebook", executed),
        ("next", f"siimcovid serve --weights {out / 'weights'}   the models as a web page"),
        (
            "",
            "make run DATA=FOLDER   your own competition folder;  make kaggle   the datasets and the kernel for Kaggle",
        ),
    ):
        print(f"{what:<11}{where}")
