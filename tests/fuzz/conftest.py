"""How the minutes of `make fuzz` are shared, and what it tried."""

from pathlib import Path

import pytest

from support import fuzzing

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All tests of this folder that are given drawn inputs share the minutes: those that are not parametrised."""
    properties = [item for item in items if item.path.parent == HERE and not hasattr(item, "callspec")]
    fuzzing.Share.properties = max(1, len(properties))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Inputs that each property was given, in a long run."""
    for name, tried in fuzzing.TRIED.items() if fuzzing.MINUTES else ():
        terminalreporter.write_line(f"{name}: {tried:,} inputs")
