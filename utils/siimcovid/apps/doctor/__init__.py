"""`siimcovid doctor`: what is present and what is missing, to submit, to train, or to change the code.

In: this machine, the repository around the package, and folders named on the command line. Out: a list of findings,
each "ok", "missing" (with one line that says how to get it) or "note" (may be in the way, or not). Uses no network and
imports neither torch nor OpenCV, so it also answers where those are broken.
"""

from collections.abc import Callable, Sequence

from siimcovid.apps.doctor import check_folders, check_kaggle, check_machine, check_software
from siimcovid.apps.doctor.check_result import MISSING, Finding, Surroundings

Check = Callable[[Surroundings], list[Finding]]

#: Option of the command -> what that person wants to do, and the checks of what it takes.
PEOPLE: dict[str, tuple[str, Sequence[Check]]] = {
    "kaggle": (
        "To submit on Kaggle",
        (
            check_software.python,
            check_software.packages,
            check_software.opencv,
            check_kaggle.client,
            check_kaggle.credentials,
            check_folders.trained_weights,
            check_kaggle.bundles,
        ),
    ),
    "train": (
        "To train on your own images",
        (
            check_software.python,
            check_software.packages,
            check_software.opencv,
            check_software.codecs,
            check_machine.processors,
            check_machine.memory,
            check_machine.disk,
            check_machine.gpus,
            check_folders.competition,
            check_folders.starting_weights,
        ),
    ),
    "change": (
        "To change the code",
        (
            check_software.python,
            check_software.all_packages,
            check_software.opencv,
            check_software.lock,
            check_software.codecs,
            check_software.tools,
            check_software.browser,
            check_machine.memory,
            check_machine.disk,
        ),
    ),
}


def examine(person: str, around: Surroundings) -> list[Finding]:
    """All findings for one of PEOPLE."""
    return [finding for check in PEOPLE[person][1] for finding in check(around)]


def as_text(person: str, findings: Sequence[Finding]) -> str:
    """The findings as lines of text, the remedy below each that has one, and how many are missing."""
    lines = [PEOPLE[person][0]]
    for finding in findings:
        lines.append(f"  {finding.state:<8} {finding.said}")
        if finding.way_out:
            lines.append(f"  {'':<8}   -> {finding.way_out}")
    missing = sum(finding.state == MISSING for finding in findings)
    verdict = "Nothing is missing." if not missing else f"{missing} thing{'s are' if missing > 1 else ' is'} missing."
    return "\n".join([*lines, f"  {verdict}"])
