"""The command `siimcovid VERB`: finds the verb's file in `siimcovid.apps.commands` and runs it.

Exit codes: 0 done, 1 the verb's own "no" (a submission that is not valid), 2 bad input or a library that
cannot be loaded, said in one sentence.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence
from types import ModuleType

from siimcovid import __version__
from siimcovid.core.errors import InputError, InstallationError
from siimcovid.core.program_start import spare_old_objects

#: verb -> one line of help; the verb's code is the module `VERB_command` of the folder commands.
VERBS = {
    "run": "execute the notebook on a competition folder and write its report",
    "synthetic": "write a synthetic demo competition",
    "import": "lay your own images out as a competition folder",
    "index": "join a competition folder's CSVs and DICOM headers into one table",
    "prepare": "turn a competition's DICOMs into upright 8-bit images",
    "weights": "import, list and verify offline weights",
    "predict": "predict image files, folders and zip archives",
    "train": "train one stage",
    "plan": "say which session on Kaggle trains what, and how long it takes",
    "search": "train a stage with many settings and compare them",
    "crossval": "train on all folds but one in turn and score the images left out",
    "fit-ensemble": "fit on a cross-validation how answers are combined",
    "ablate": "compare the system with each of its parts off and on",
    "validate": "check a submission's format",
    "scoreboard": "show a run's scoreboard",
    "report": "write a page of a run's figures, tables and images",
    "doctor": "say what is missing to submit, to train or to change the code",
    "serve": "serve the web page",
    "bench": "measure speed beside the plain way",
    "kaggle": "build the datasets and the kernel for Kaggle, try them at home, upload them",
    "score": "score a submission with the competition's metric",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a file's name may hold what the terminal's encoding lacks
            stream.reconfigure(errors="backslashreplace")
    try:
        return _run(list(sys.argv[1:] if arguments is None else arguments))
    except InstallationError as error:
        print(f"siimcovid: {error}", file=sys.stderr)
        return 2


def program() -> int:
    """`main` as a program of its own, on the arguments that it was given."""
    spare_old_objects()
    return main()


def _run(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="siimcovid", description=__doc__.split(":")[0])
    parser.add_argument("--version", action="version", version=__version__)
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    chosen = next((a for a in arguments if a in VERBS), None)
    for name, summary in VERBS.items():
        verb = verbs.add_parser(
            name, help=summary, description=summary, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        if name == chosen:  # only the verb that runs is imported
            command = _command(name)
            verb.epilog = f"example:\n  {command.EXAMPLE}"
            command.add_arguments(verb)
    args = parser.parse_args(arguments)
    try:
        return _command(args.verb).run(args) or 0
    except InputError as error:
        print(f"siimcovid {args.verb}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `siimcovid … | head` is no error
        sys.stderr.close()
        return 0


def _command(verb: str) -> ModuleType:
    return importlib.import_module(f"siimcovid.apps.commands.{verb.replace('-', '_')}_command")


if __name__ == "__main__":
    raise SystemExit(program())
