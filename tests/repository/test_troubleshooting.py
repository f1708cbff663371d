"""docs/troubleshooting.md has every message that the package raises or notices, and none that it does not.

A message is compared by its literal parts: where the source puts a value, the page puts … or, where the value is itself
a text of the source, that text.
"""

import ast
import re
from collections.abc import Iterator
from itertools import product
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "troubleshooting.md"
PACKAGE = ROOT / "utils" / "siimcovid"

#: Errors whose text a person may read: at the prompt, in the notebook, in failures.csv or on the web page.
ERRORS = (
    "InputError",
    "OutputError",
    "InstallationError",
    "NotFiniteError",
    "DicomError",
    "Refused",
    "RequestError",
)

#: Names of the lists in which messages are collected: of an image, of a folder, of a submission.
LISTS = ("notices", "problems", "faults")

#: Letters that the literal parts must have together. A text of fewer only passes on another one.
LEAST_LETTERS = 12

#: A message's literal parts; a value stood between each two of them.
Parts = tuple[str, ...]


def _texts(node: ast.expr) -> list[Parts]:
    """What an expression may be as text: one for each way through its conditions; a value is ("", "")."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [(node.value,)]
    if isinstance(node, ast.JoinedStr):
        return _joined(_texts(part) for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _joined((_texts(node.left), _texts(node.right)))
    if isinstance(node, ast.IfExp):
        return _texts(node.body) + _texts(node.orelse)
    return [("", "")]


def _joined(parts: Iterator[list[Parts]] | tuple[list[Parts], ...]) -> list[Parts]:
    whole = []
    for chosen in product(*parts):
        joined: Parts = ("",)
        for one in chosen:
            joined = (*joined[:-1], joined[-1] + one[0], *one[1:])
        whole.append(joined)
    return whole


def _shown(parts: Parts) -> str:
    """As it stands on the page: … for a value, white space as one blank."""
    return re.sub("…+", "…", " ".join("…".join(parts).split()))


def _is_long(shown: str) -> bool:
    return sum(letter.isalpha() for letter in shown) >= LEAST_LETTERS


def _name(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _gives_a_message(call: ast.Call) -> bool:
    """Whether a call makes one of ERRORS or adds to one of LISTS."""
    adds = isinstance(call.func, ast.Attribute) and call.func.attr in ("append", "report")
    return _name(call.func) in ERRORS or (adds and _name(call.func.value) in LISTS)


def read_source() -> tuple[dict[str, str], set[str]]:
    """Every message of the package with the place where it stands; and every text in the package's code."""
    messages, texts = {}, set()
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and _gives_a_message(node):
                found = {_shown(parts) for given in node.args for parts in _texts(given)}
                place = f"{path.relative_to(ROOT)}:{node.lineno}"
                messages.update((shown, place) for shown in found if " " in shown)
            if isinstance(node, ast.Constant | ast.JoinedStr | ast.BinOp):
                texts.update(map(_shown, _texts(node)))
    return messages, texts


def read_page() -> list[str]:
    """The messages in the first columns of the page's tables: what stands in single or double backticks."""
    cells = [cell for cell, *_ in read_rows() if cell != "message"]
    return [single or double for cell in cells for double, single in re.findall("`` (.+?) ``|`([^`]+)`", cell)]


def read_rows() -> list[list[str]]:
    """The cells of each row of the tables of messages, which begin in the first section."""
    lines = PAGE.read_text(encoding="utf-8").partition("\n## ")[2].splitlines()
    return [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]


def _fits(shown: str, message: str, texts: set[str]) -> bool:
    """Whether the page's `shown` is the source's `message` with … or a text of the source for each value."""
    found = re.fullmatch(re.escape(message).replace("…", "(.*?)"), shown)
    return found is not None and all(value in texts or value.strip(" ….,") == "" for value in found.groups())


def test_every_message_of_the_package_stands_on_the_page():
    messages, texts = read_source()
    messages = {message: place for message, place in messages.items() if _is_long(message)}
    assert len(messages) > 250
    page = set(read_page())
    missing = [
        f"{place}: {message}"
        for message, place in messages.items()
        if message not in page and not any(_fits(shown, message, texts) for shown in page)
    ]
    assert not missing, "docs/troubleshooting.md lacks\n" + "\n".join(missing)


def test_every_message_on_the_page_stands_in_the_package():
    messages, texts = read_source()
    page = read_page()
    assert len(page) > 250
    stale = [
        shown for shown in page if shown not in texts and not any(_fits(shown, message, texts) for message in messages)
    ]
    assert not stale, "no code has these messages of docs/troubleshooting.md\n" + "\n".join(stale)


def test_no_message_stands_there_twice():
    page = read_page()
    assert not [shown for shown in set(page) if page.count(shown) > 1]


def test_every_row_has_three_cells_and_a_message():
    rows = read_rows()
    assert not [row for row in rows if len(row) != 3 or not all(row)]
    assert not [row for row in rows if row[0] != "message" and "`" not in row[0]]
