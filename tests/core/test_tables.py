"""CSV files as text, and the sentences about those that are none."""

import gzip
import os

import pandas as pd
import pytest

from siimcovid.core.errors import InputError
from siimcovid.core.tables import find_table, no_table, numbers, printable, read_csv, read_lines, some, unescaped


def test_ids_stay_text(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("\ufeffid,x\r\n123456789e12,NA\r\n000123456789,\r\n")
    expected = [{"id": "123456789e12", "x": "NA"}, {"id": "000123456789", "x": ""}]
    assert read_csv(path, ("id", "x")).to_dict("records") == expected
    zipped = tmp_path / "b.csv.gz"
    zipped.write_bytes(gzip.compress(path.read_bytes()))
    assert read_csv(zipped).to_dict("records") == expected
    assert find_table(tmp_path, "a.csv") == path
    assert find_table(tmp_path, "b.csv") == zipped
    assert find_table(tmp_path, "c.csv") is None


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "a.csv is empty"),
        ("a.csv", b"ID,x\n1,2\n", r"a.csv has no column 'id' \(it has ID, x\)"),
        ("a.csv", b"id\n1\n2,3\n4,5,6\n", r"a.csv has 2 fields in line 3, where the lines before it have 1: a comma"),
        ("a.csv", b"id,x\n1,2,\n3,4,\n", r"a.csv has 3 fields in line 2, where .* 2: a comma too many, at the end"),
        ("a.csv", b"id,x\n1,a, b\n", r"a.csv has 3 fields in line 2, .* a text without quotes"),
        ("a.csv", b"id,x\n1,2\n3\n", r"a.csv has 1 fields in line 3, where the titles are 2: the file was cut off"),
        ("a.csv", b"id,x,id\n1,2,3\n", r"a.csv has the column 'id' 2 times: remove all but one"),
        ("a.csv", b'id,x\n1,"2\n3', r"a.csv cannot be read as CSV"),
        ("a.csv.zip", b"id\n1\n", "a.csv.zip cannot be read as CSV"),
        ("a.csv.gz", b"", "a.csv.gz is empty"),
        ("a.csv.gz", b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03garbage", "a.csv.gz cannot be read as CSV"),
        ("a.csv", b"id\n\xff\xfe\n", "a.csv cannot be read as CSV"),
        ("a.csv.gz", b"id\n1\n", "a.csv.gz cannot be read as CSV"),
        (
            "a.csv.gz",
            gzip.compress(b"id\n" + bytes(range(48, 58)) * 99, mtime=0)[:-12],
            "a.csv.gz cannot be read as CSV",
        ),
    ],
)
def test_what_is_no_table_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_csv(tmp_path / name, ("id",))
    assert "\n" not in str(caught.value)


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match=r"a\.csv does not exist"):
        read_csv(tmp_path / "a.csv")
    with pytest.raises(InputError, match="is a folder: give a CSV file"):
        read_csv(tmp_path)
    (tmp_path / "Labels.csv.7z").write_bytes(b"")
    assert no_table(tmp_path, "labels.csv").endswith(", only Labels.csv.7z")
    assert no_table(tmp_path / "absent", "labels.csv") == f"no labels.csv in {tmp_path / 'absent'}"


def test_titles_that_are_empty_or_repeated_get_a_number(tmp_path):
    (tmp_path / "a.csv").write_text("id,,x,x,\n1,2,3,4,\n")
    assert read_csv(tmp_path / "a.csv", ("id",)).to_dict("records") == [
        {"id": "1", ".1": "2", "x": "3", "x.2": "4", ".2": ""}
    ]


def test_a_file_of_ones_own_that_was_cut(tmp_path):
    (tmp_path / "a.csv").write_text("id,x\n1,25")
    assert len(read_csv(tmp_path / "a.csv")) == 1
    with pytest.raises(InputError, match=r"a\.csv is cut off in its last line"):
        read_csv(tmp_path / "a.csv", complete=True)


def test_lines_of_any_length(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('\ufeff1,2\n3\n\n4,5,6,\n"7, 8",NA\n , \n')
    assert read_lines(path) == [["1", "2"], ["3"], ["4", "5", "6", ""], ["7, 8", "NA"]]
    path.write_bytes(b"1\n\xff\n")
    with pytest.raises(InputError, match=r"a\.csv cannot be read as CSV"):
        read_lines(path)
    path.write_text('1\n"2')
    with pytest.raises(InputError, match=r"a\.csv cannot be read as CSV"):
        read_lines(path)


@pytest.mark.parametrize("text", ["plain", "ä", os.fsdecode(b"a\xff/\x80b"), ""])
def test_names_that_are_no_utf8(text):
    assert unescaped(printable(text)) == text
    printable(text).encode("utf-8")


@pytest.mark.parametrize("value", ["", "tall", "nan", "inf", "1 2", "1" * 400, "1e400", "0x1", "True"])
def test_what_is_no_number_is_named(value):
    table = pd.DataFrame({"x": ["1", "-2.5e1", value]})
    with pytest.raises(InputError, match=f"sizes: column 'x' has '{value[:80]}'"):
        numbers(table, "x", "sizes")
    assert numbers(table[:2], "x", "sizes").tolist() == [1.0, -25.0]


def test_some_of_many_names():
    assert some(["a", "b"]) == "a, b"
    assert some(["a", "b", "c"]) == "a, b, c"
    assert some([str(n) for n in range(1003)]) == "0, 1, 2 and 1,000 more"
