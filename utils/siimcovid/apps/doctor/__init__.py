"""What is present and what is missing, for each of three people. No network is asked, and nothing heavy imported.

In: this machine, the repository around the package, and folders that are named. Out: findings, each of them ok, missing
(with one line that says the way out) or a note: something that may be in the way, or not.
"""

from collections.abc import Callable, Sequence

from siimcovid.apps.doctor import check_folders, check_kaggle, check_machine, check_software
from siimcovid.apps.doctor.check_result import MISSING, Finding, Surroundings

Check = Callable[[Surroundings], list[Finding]]

#: person -> what they want, and what that takes.
PEOPLE: dict[str, tuple[str, Sequence[Check]]] = {
    "kaggle": (
        "To submit on Kaggle",
        (
            check_software.python,
            check_software.packages,
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
    """Findings as lines, the way out below each that has one, and the verdict."""
    lines = [PEOPLE[person][0]]
    for finding in findings:
        lines.append(f"  {finding.state:<8} {finding.said}")
        if finding.way_out:
            lines.append(f"  {'':<8}   -> {finding.way_out}")
    missing = sum(finding.state == MISSING for finding in findings)
    verdict = "Nothing is missing." if not missing else f"{missing} thing{'s are' if missing > 1 else ' is'} missing."
    return "\n".join([*lines, f"  {verdict}"])
