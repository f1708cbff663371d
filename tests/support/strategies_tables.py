"""hypothesis strategies for what people hand in as tables and settings: nearly right, damaged, and neither."""

import gzip
import io
import itertools
import json
import zipfile
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from siimcovid.core.errors import InputError
from siimcovid.core.labels import NIH_FINDINGS, STUDY_COLUMNS
from siimcovid.core.overrides import leaf_keys, to_dict
from siimcovid.core.presets import DEMO


def one_sentence(function: Callable, *arguments: Any, **options: Any) -> Any:
    """What a function returns, or None where it refuses its input as it should: by InputError, in one line."""
    try:
        return function(*arguments, **options)
    except InputError as error:
        message = str(error)
        assert message
        assert "\n" not in message
        assert len(message) < 2000
        message.encode("utf-8", "backslashreplace")
        return None


#: Ids, numbers and texts, right ones and such as people's tables have held.
NAMES = ["000a312787f2", "0012ff7358bc", "123456789e12", "NA", "a b", "ä", "", "x" * 40, "../a", "0"]
IDS = st.sampled_from(NAMES)
NUMBERS = st.sampled_from(
    [
        *("0", "1", "1.0", "-3.56", "1e-4", "1e308", "1e999", "nan", "inf", "-inf", "None", "", " 2 ", "0x1", "1,5"),
        *("1_0", "9" * 400, "true", "'1'", "٣", "1 2", "-0.0", "1e-320"),
    ]
)
NUMBERS |= st.floats().map(str) | st.integers(-5000, 5000).map(str)
TEXTS = st.text(max_size=12) | st.sampled_from(['"', "'", '""', ",", "\n", "\r", "\0", "\ufeff", "=1+1", "\ud7ff"])

PIXELS = st.integers(0, 1500).map(str)
BOX = st.fixed_dictionaries(
    dict.fromkeys(("x", "y", "width", "height"), st.one_of(PIXELS, PIXELS, PIXELS, NUMBERS))
).map(lambda box: "{" + ", ".join(f"'{key}': {value}" for key, value in box.items()) + "}")
BOXES = st.lists(BOX, max_size=3).map(lambda boxes: f"[{', '.join(boxes)}]")
BOXES |= st.sampled_from(["", "[]", "[[]]", "{}", "7", "[7]", "None", "(", "[" * 3000, "__import__('os')", "nan"])
BOXES |= TEXTS


def _row(*cells: st.SearchStrategy) -> st.SearchStrategy:
    return st.tuples(*cells).map(list)


#: Table -> its titles and a strategy for a row.
LAYOUTS: dict[str, tuple[list[str], st.SearchStrategy]] = {
    "train_image_level.csv": (
        ["id", "boxes", "label", "StudyInstanceUID"],
        _row(IDS.map(lambda name: f"{name}_image"), BOXES, TEXTS, IDS),
    ),
    "train_study_level.csv": (
        ["id", *STUDY_COLUMNS],
        _row(IDS.map(lambda name: f"{name}_study"), *[st.sampled_from(["0", "1", "1.0"]) | NUMBERS] * 4),
    ),
    "sample_submission.csv": (
        ["id", "PredictionString"],
        _row(st.tuples(IDS, st.sampled_from(["_image", "_study", ""])).map("".join), TEXTS),
    ),
    "headers.csv": (
        ["image_id", "study_id", "series_id", "patient_id", "rows", "columns"],
        _row(IDS, IDS, IDS, IDS, st.just("2000") | NUMBERS, st.just("2500") | NUMBERS),
    ),
    "train_duplicates.csv": (["000a312787f2", "0012ff7358bc"], st.lists(IDS, max_size=5)),
    "stage_2_train_labels.csv": (
        ["patientId", "x", "y", "width", "height", "Target"],
        _row(IDS, NUMBERS, NUMBERS, NUMBERS, NUMBERS, st.sampled_from(["0", "1"]) | NUMBERS),
    ),
    "stage_2_detailed_class_info.csv": (
        ["patientId", "class"],
        _row(IDS, st.sampled_from(["Lung Opacity", "Normal"]) | TEXTS),
    ),
    "Data_Entry_2017.csv": (
        ["Image Index", "Finding Labels", "Patient ID"],
        _row(
            IDS.map(lambda name: f"{name}.png"),
            st.lists(st.sampled_from(NIH_FINDINGS), max_size=3).map("|".join) | TEXTS,
            IDS,
        ),
    ),
}


def _written(titles: list[str], rows: list[list[str]], quoted: bool, end: str) -> bytes:
    def field(text: str) -> str:
        bare = not quoted and not set(text) & set(',"\r\n')
        return text if bare else '"' + text.replace('"', '""') + '"'

    lines = [",".join(map(field, line)) + end for line in (titles, *rows)]
    return "\n".join([*lines, ""]).encode("utf-8", "replace")


@st.composite
def tables(draw: st.DrawFn, name: str) -> bytes:
    """A table by the layout of LAYOUTS, one in two with a fault: of titles, rows or bytes."""
    titles, row = LAYOUTS[name]
    rows = draw(st.lists(row, max_size=6))
    titles = list(titles)
    fault = draw(st.sampled_from([*[""] * 8, "titles", "rows", "comma", "bytes", "cut", "any"]))
    if fault == "any":
        return draw(st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "replace")))
    if fault == "titles":
        titles[draw(st.integers(0, len(titles) - 1))] = draw(TEXTS | st.sampled_from(titles))
    if fault == "rows" and rows:
        rows[draw(st.integers(0, len(rows) - 1))] = draw(st.lists(TEXTS | NUMBERS, max_size=7))
    content = _written(titles, rows, draw(st.booleans()), "," if fault == "comma" else "")
    content = draw(st.sampled_from([b"", b"", b"\xef\xbb\xbf"])) + content
    return draw(damaged(content)) if fault in ("bytes", "cut") else content


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes cut off, or with some of them replaced or doubled."""
    place = draw(st.integers(0, max(len(content) - 1, 0)))
    what = draw(st.binary(max_size=4))
    return draw(st.sampled_from([content[:place], content[:place] + what + content[place + 1 :], content[:place] * 2]))


@st.composite
def files(draw: st.DrawFn, name: str) -> tuple[str, bytes]:
    """The name and content of a table's file: plain, gzipped or zipped, the latter also damaged."""
    content, pack = draw(tables(name)), draw(st.sampled_from(["", "", "", "", ".gz", ".zip"]))
    if pack == ".gz":
        content = gzip.compress(content, mtime=0)
    if pack == ".zip":
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            for inside in draw(st.lists(st.sampled_from([name, f"x/{name}", "other.csv"]), max_size=2, unique=True)):
                archive.writestr(inside, content)
        content = packed.getvalue()
    if pack and draw(st.booleans()):
        content = draw(damaged(content))
    return name + pack, content


#: Keys of settings, right ones, and such with a slip.
KEYS = st.sampled_from(list(leaf_keys(DEMO)))
SLIPS = st.sampled_from(["study", "study.", "epochs", "study.epochs", "yolo.lr", "rcnn.training.epochs.x", "", "."])
SLIPS |= KEYS.map(lambda key: key[:-1]) | KEYS.map(str.upper) | TEXTS

#: Values of settings as JSON, Python and the command line have them.
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | NUMBERS | TEXTS
SCALARS |= st.sampled_from([0, -1, 1, 2, 31, 32, 33, 64, 250, 0.5, 1.0, 1e9, 10**30, "true", "sgd", "rcnn,yolo", "1,1"])
VALUES = SCALARS | st.lists(SCALARS, max_size=4) | st.dictionaries(TEXTS, SCALARS, max_size=2)

CHANGES = st.dictionaries(KEYS | SLIPS, VALUES, max_size=3)


@st.composite
def configurations(draw: st.DrawFn) -> Any:
    """A preset as JSON with some values replaced, missing or too many."""
    tree = json.loads(json.dumps(to_dict(DEMO)))
    for _ in range(draw(st.integers(0, 3))):
        node = tree
        for _ in itertools.count():
            key = draw(st.sampled_from(sorted(node)) | SLIPS)
            if isinstance(node.get(key), dict) and node[key] and draw(st.booleans()):
                node = node[key]
                continue
            break
        if draw(st.booleans()):
            node[key] = draw(VALUES)
        else:
            node.pop(key, None)
    return tree
