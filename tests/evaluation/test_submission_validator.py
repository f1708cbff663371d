"""The format check: a table of broken files with the faults they must be told, and what must pass."""

import gzip
import itertools
import subprocess
import sys

import numpy as np
import pytest

from siimcovid.apps.command_line import main
from siimcovid.core.errors import InputError
from siimcovid.evaluation.submission_validator import UNBOUNDED, _is_sound, _parse, _row_faults, validate

SAMPLE = "id,PredictionString\na_study,negative 1 0 0 1 1\nb_image,none 1 0 0 1 1\nc_image,none 1 0 0 1 1\n"
SIZES = 'image_id,boxes,rows,columns\nb,"[[0, 0, 1, 1], [0, 0, 1, 1]]",200,300\nc,[],0,0\n'
STUDY_ROW = "negative .1 0 0 1 1 typical .2 0 0 1 1 indeterminate .3 0 0 1 1 atypical .4 0 0 1 1"
GOOD = {
    "header": "id,PredictionString",
    "a": f"a_study,{STUDY_ROW}",
    "b": "b_image,none .5 0 0 1 1 opacity .9 0 0 300 200 opacity .001 10.5 20 30 40.5",
    "c": "c_image,none 0.0 0.0 0 1 1.0",
}


@pytest.fixture
def check(tmp_path):
    """Faults of the good submission with some of its lines replaced (None: left out), or of given bytes."""

    def faults(content=None, /, sized=True, **lines):
        if content is None:
            kept = [line for line in {**GOOD, **lines}.values() if line is not None]
            content = "".join(f"{line}\n" for line in kept).encode()
        for name, data in (("submission.csv", content), ("sample.csv", SAMPLE.encode()), ("sizes.csv", SIZES.encode())):
            (tmp_path / name).write_bytes(data)
        sizes = tmp_path / "sizes.csv" if sized else None
        return validate(tmp_path / "submission.csv", tmp_path / "sample.csv", sizes).faults

    return faults


def test_good(check):
    assert check() == []
    assert check("\r\n".join(GOOD.values()).encode()) == []  # Windows line ends, none at the end
    assert check("".join(f"{line}\n" for line in list(GOOD.values())[::-1]).encode()) != []  # the header must be first
    assert check(b=None, c=GOOD["c"] + "\n" + GOOD["b"]) == []  # rows in any order
    assert check(b='"b_image","none .5 0 0 1 1"') == []  # quoted fields
    assert check(a="a_study,negative 1 0 0 1 1") == []  # as the sample itself
    assert (
        check(a="a_study,negative -3 0 0 1 1", b="b_image,opacity 1e3 0 0 1 1") == []
    )  # metrics only rank confidences
    assert check(gzip.compress("\n".join(GOOD.values()).encode())) == []
    assert check(c="c_image,opacity .5 0 0 9999 9999") == []  # size unknown
    assert check(b="b_image,opacity .5 0 0 9999 9999", sized=False) == []
    assert check(b="b_image,opacity .5 -.5 -.5 200 190") == []  # begins .25 % of its side before the edge


# Replaced line (or lines), then each fault: its line and words of it.
STUDY, BOX = "a_study,", "b_image,"
BROKEN = [
    ({"header": "Id,PredictionString"}, (1, "the header is 'Id,PredictionString' instead of 'id,PredictionString'")),
    ({"header": None}, (1, "the header 'id,PredictionString' is missing")),
    ({"header": "\ufeffid,PredictionString"}, (1, "byte order mark")),
    ({"a": None}, (2, "of the sample: a_study: the id is missing")),
    ({"b": None, "c": None}, (3, "of the sample: b_image: the id is missing"), (4, "of the sample: c_image")),
    ({"c": GOOD["c"] + "\nd_image,none 1 0 0 1 1"}, (5, "d_image: the id is not in the sample")),
    ({"c": GOOD["c"] + "\n" + GOOD["b"]}, (5, "b_image: the id is repeated, first on line 3")),
    ({"b": ""}, (3, "the line is empty"), (3, "of the sample: b_image: the id is missing")),
    ({"b": "b_image"}, (3, "b_image: 1 fields instead of 2")),
    ({"b": BOX + "none 0,5 0 0 1 1"}, (3, "3 fields instead of 2"), (3, "tuple 1 (none 0): 2 values instead of 6")),
    ({"b": BOX}, (3, "the predictions are empty")),
    ({"b": BOX + '"none .5 0 0 1 1'}, (3, "quotes are not balanced"), (3, "label '\"none' is unknown")),
    ({"b": BOX + "nan"}, (3, "label 'nan' is unknown"), (3, "tuple 1 (nan): 1 values instead of 6")),
    ({"b": BOX + "opacity .5 1 2 3"}, (3, "tuple 1 (opacity .5 1 2 3): 5 values instead of 6")),
    ({"b": BOX + "none 1 0 0 1 1 1"}, (3, "tuple 1 (none 1 0 0 1 1 1): 7 values instead of 6")),
    (
        {"b": BOX + "opacity .5 1 2 3 opacity .5 1 2 3 4 opacity .5 1 2 3 4 5"},  # 18 values, and still
        (3, "tuple 1 (opacity .5 1 2 3): 5 values"),
        (3, "tuple 3 (opacity .5 1 2 3 4 5): 7 values"),
    ),
    ({"b": BOX + "Opacity .5 1 2 3 4"}, (3, "the label 'Opacity' is unknown")),
    ({"b": BOX + ".5 1 2 3 4 opacity"}, (3, "'.5' is unknown"), (3, "(.5 1 2 3 4): 5"), (3, "(opacity): 1")),
    ({"b": BOX + "typical .5 0 0 1 1"}, (3, "label 'typical' is misplaced: a row of this kind takes none, opacity")),
    ({"a": STUDY + "opacity .5 1 2 3 4"}, (2, "label 'opacity' is misplaced")),
    ({"a": STUDY + "none .5 0 0 1 1"}, (2, "label 'none' is misplaced")),
    ({"a": STUDY + "typical .5 0 0 1 1 typical .5 0 0 1 1"}, (2, "the label 'typical' is repeated")),
    ({"b": BOX + "none .5 0 0 1 1 none .5 0 0 1 1"}, (3, "label 'none' is repeated")),
    ({"b": BOX + "none high 0 0 1 1"}, (3, "confidence 'high' is no number")),
    ({"b": BOX + "none 1_0 0 0 1 1"}, (3, "confidence '1_0' is no number")),
    ({"b": BOX + "none nan 0 0 1 1"}, (3, "confidence 'nan' is not finite")),
    ({"b": BOX + "opacity inf 1 2 nan 4"}, (3, "confidence 'inf' is not finite"), (3, "xmax 'nan' is not finite")),
    ({"b": BOX + "opacity .5 1 2 inf 4"}, (3, "xmax 'inf' is not finite")),
    ({"b": BOX + "none .5 0 0 1 2"}, (3, "the dummy box must be 0 0 1 1")),
    ({"a": STUDY + "typical .5 0 0 300 200"}, (2, "the dummy box must be 0 0 1 1")),
    ({"b": BOX + "opacity .5 30 2 10 4"}, (3, "inverted or empty: xmin 30 is not below xmax 10")),
    ({"b": BOX + "opacity .5 1 4 2 4"}, (3, "inverted or empty: ymin 4 is not below ymax 4")),
    ({"b": BOX + "opacity .5 -1 2 10 4"}, (3, "outside the image: xmin -1 is below 0")),
    ({"c": "c_image,opacity .5 1 -2 10 4"}, (4, "outside the image: ymin -2 is below 0")),
    ({"b": BOX + "opacity .5 1 2 300.1 4"}, (3, "outside the image: xmax 300.1 is above its 300 columns")),
    ({"b": BOX + "opacity .5 1 2 10 201"}, (3, "outside the image: ymax 201 is above its 200 rows")),
    ({"b": BOX + "none .5\u00a00 0 1 1"}, (3, "other than printable ASCII")),
    ({"b": BOX + "none \u0661 0 0 1 1"}, (3, "other than printable ASCII"), (3, "confidence '\u0661' is no number")),
]  # fmt: skip


@pytest.mark.parametrize(("lines", "expected"), [(c[0], c[1:]) for c in BROKEN], ids=[str(c[0]) for c in BROKEN])
def test_broken(check, lines, expected):
    faults = check(**lines)
    assert len(faults) == len(expected), faults
    for fault, (line, words) in zip(faults, expected, strict=True):
        assert fault.startswith(f"line {line}")
        assert words in fault


def test_broken_as_a_whole(check):
    semicolons = "\n".join(line.replace(",", ";") for line in GOOD.values())
    assert check(semicolons.encode()) == ["line 1: the fields are separated by ';' instead of ','"]
    indexed = "\n".join(f"{'' if k == 0 else k},{line}" for k, line in enumerate(GOOD.values()))
    assert check(indexed.encode()) == ["line 1: the header is ',id,PredictionString' instead of 'id,PredictionString'"]
    for empty in (b"", b"\n \n"):
        assert check(empty) == ["line 1: the file is empty"]
    latin = "\n".join(GOOD.values()).replace("opacity .9", "opacit\u00e9 .9").encode("latin-1")
    faults = check(latin)
    assert faults[0] == "line 3: b_image: bytes that are not UTF-8"
    assert all(fault.isprintable() for fault in faults)
    assert len(check(b"\x00\xff\n" * 3)) > 3
    nothing = ["of the sample: a_study", "of the sample: b_image", "of the sample: c_image"]
    assert all(words in fault for words, fault in zip(nothing, check(b"id,PredictionString\n"), strict=True))


def test_every_fault_is_named(check):
    faults = check(a=STUDY + "none nan 0 0 1 1", b=BOX + "opacity .5 5 5 4 4 lesion 1 0 0 1 1", c=None)
    assert [fault.split(":")[0] for fault in faults] == ["line 2"] * 2 + ["line 3"] * 3 + ["line 4 of the sample"]


def test_the_quick_way_agrees_with_the_thorough_one():
    """Where `_is_sound` says yes nothing can be found, and strings that do not parse always have a fault."""
    rng = np.random.default_rng(0)
    words = [
        "none",
        "opacity",
        "typical",
        "negative",
        "x",
        ".5",
        "0",
        "1",
        "1",
        "0",
        "7",
        "-2",
        "nan",
        "inf",
        "1_0",
        "\t",
    ]
    outcomes = set()
    for kind, size in itertools.product(("study", "image"), ((5, 9), UNBOUNDED)):
        for _ in range(500):
            rows = [
                ["none", ".5", "0", "0", "1", "1"],
                ["opacity", ".5", "1", "1", "5", "5"],
                ["typical", "1", "0", "0", "1", "1"],
            ]
            tokens = [token for k in rng.integers(0, 3, rng.integers(1, 4)) for token in rows[k]]
            for place in rng.integers(0, len(tokens), rng.integers(0, 3)):
                tokens[place] = str(rng.choice(words))
            text = " ".join(tokens)
            tuples, faults = _parse(text), list(_row_faults(kind, text, size))
            sound = tuples is not None and _is_sound(kind, tuples, size)
            outcomes.add((tuples is not None, sound))
            assert sound == (not faults), text
    assert len(outcomes) == 3


@pytest.mark.parametrize(
    ("sample", "sizes", "message"),
    [
        ("id\na_study\n", SIZES, "two columns"),
        ("id,PredictionString\n", SIZES, "no rows"),
        ("id,PredictionString\nfoo,bar\n", SIZES, "must end in _study or _image"),
        (SAMPLE, "id,rows,columns\n", "image_id, rows, columns"),
        (SAMPLE, "image_id,dim0,dim1\nb,many,3\n", "no number"),
        (None, SIZES, "cannot read"),
    ],
)
def test_the_other_files_must_be_right(tmp_path, sample, sizes, message):
    for name, text in (("submission.csv", SAMPLE), ("sample.csv", sample), ("sizes.csv", sizes)):
        if text is not None:
            (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        validate(*(tmp_path / name for name in ("submission.csv", "sample.csv", "sizes.csv")))


def test_a_damaged_gzip_is_an_input_error(tmp_path):
    (tmp_path / "submission.csv.gz").write_bytes(gzip.compress(SAMPLE.encode())[:-9])
    (tmp_path / "sample.csv").write_text(SAMPLE)
    with pytest.raises(InputError, match="cannot read"):
        validate(tmp_path / "submission.csv.gz", tmp_path / "sample.csv")


def test_command(tmp_path, capsys):
    (tmp_path / "sample.csv").write_text(SAMPLE)
    submission, sample = str(tmp_path / "submission.csv"), str(tmp_path / "sample.csv")
    (tmp_path / "submission.csv").write_text("\n".join(GOOD.values()))
    assert main(["validate", submission, "--sample", sample]) == 0
    printed = capsys.readouterr().out
    for line in (
        "study rows 1, image rows 2",
        "boxes 2: 1.00 an image, at most 2",
        "none                 2, confidence 0 to 0.5",
        "opacity              2, confidence 0.001 to 0.9",
    ):
        assert line in printed
    (tmp_path / "submission.csv").write_text("\n".join(GOOD.values()).replace("_image", "_picture"))
    assert main(["validate", submission, "--sample", sample]) == 1
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1] == f"{submission}: not valid, {len(printed) - 1} faults"
    assert main(["validate", submission, "--sample", submission]) == 2
    assert "no sample submission" in capsys.readouterr().err


def test_nothing_heavy_is_imported(tmp_path):
    (tmp_path / "sample.csv").write_text(SAMPLE)
    code = (
        "import sys; from siimcovid.apps.command_line import main; main(sys.argv[1:]);"
        "print(sorted({'numpy', 'pandas', 'torch', 'pydicom'} & set(sys.modules)))"
    )
    arguments = ["validate", str(tmp_path / "sample.csv"), "--sample", str(tmp_path / "sample.csv")]
    printed = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert printed.stdout.splitlines()[-1] == "[]"


def test_a_public_submission_is_valid(real):
    labels = real / "labels"
    sample, sizes = labels / "sample_submission.csv.gz", labels / "image_sizes_train_test_meta.csv.gz"
    verdict = validate(labels / "public_test_submission_nada-baili.csv.gz", sample, sizes)
    assert verdict.faults == []
    assert verdict.holdings.rows == {"study": 1214, "image": 1263}
    assert len(verdict.holdings.confidences["opacity"]) == 1393
    assert validate(sample, sample).faults == []
