"""Files that torch before 1.6 wrote of whole models, made readable for torch.load(weights_only=True).

Such a file is a run of pickles. In the fourth, which is the model, each class stands as a persistent id ("module",
class, file, source code), which torch.load refuses with weights_only. Here the pickle's instructions are rewritten, and
not run: each such id becomes a call of `class_of` with the id, which gives the class again.
"""

import io
import pickletools
from dataclasses import dataclass, field
from typing import Any

#: The instructions with which the rewritten pickle names `class_of`, and calls it with a tuple of one argument.
CALLED = "siimcovid.models.pickled_modules.class_of"
NAME_IT = b"csiimcovid.models.pickled_modules\nclass_of\n"
CALL_IT = b"\x85R"

#: How many pickles stand before the model's: a magic number, a version, and facts about the machine.
HEADER = 3

TEXTS = ("BINUNICODE", "SHORT_BINSTRING", "BINSTRING")


def class_of(identity: tuple[Any, ...]) -> Any:
    """The class in a persistent id ("module", class, file, source code)."""
    return identity[1]


@dataclass
class _Reading:
    """What is known while a pickle's instructions go by."""

    memo: dict[int, str] = field(default_factory=dict)  # texts that were stored
    marks: list[tuple[int, str]] = field(default_factory=list)  # open marks: place, and the text right behind it
    closed: tuple[int, str] = (0, "")  # the mark of the tuple that was built last
    text: str | None = None  # what the last instruction left, if a text
    after_mark: bool = False


def readable(content: bytes) -> tuple[bytes, set[str]]:
    """The same file with its module ids rewritten, and the names of all classes and functions that its pickle names.

    Raises ValueError and others where `content` is no such file.
    """
    stream = io.BytesIO(content)
    for _ in range(HEADER):
        for _ in pickletools.genops(stream):
            pass
    state, names = _Reading(), set()
    edits: list[tuple[int, int, bytes]] = []  # place, length of what goes, what comes
    for instruction, argument, place in pickletools.genops(stream):
        if instruction.name == "GLOBAL":
            names.add(argument.replace(" ", "."))
        if instruction.name == "BINPERSID" and state.closed[1] == "module":
            edits += [(state.closed[0], 0, NAME_IT), (place, 1, CALL_IT)]
        _follow(state, instruction, argument, place)
    parts, end = [], 0
    for place, length, coming in sorted(edits):
        parts += [content[end:place], coming]
        end = place + length
    return b"".join([*parts, content[end:]]), names


def _follow(state: _Reading, instruction: pickletools.OpcodeInfo, argument: Any, place: int) -> None:
    """Bring the state behind one instruction."""
    name = instruction.name
    text = argument if name in TEXTS else state.memo.get(argument) if name in ("BINGET", "LONG_BINGET") else None
    if name in ("BINPUT", "LONG_BINPUT"):
        if state.text is not None:
            state.memo[argument] = state.text
        return  # what stands on the stack is the same
    if state.after_mark and text is not None:
        state.marks[-1] = (state.marks[-1][0], text)
    if pickletools.markobject in instruction.stack_before and state.marks:
        closed = state.marks.pop()
        if name == "TUPLE":
            state.closed = closed
    if name == "MARK":
        state.marks.append((place, ""))
    state.text, state.after_mark = text, name == "MARK"
