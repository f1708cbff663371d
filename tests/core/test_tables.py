"""CSV files as text, and the sentences about those that are none."""

import gzip

import pandas as pd
import pytest

from siimcovid.core.errors import InputError
from siimcovid.core.tables import find_table, numbers, read_csv, some


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
        ("a.csv", b"id\n1\n2,3\n4,5,6\n", "a.csv cannot be read as CSV"),
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
    with pytest.raises(InputError, match=message):
        read_csv(tmp_path / name, ("id",))


@pytest.mark.parametrize("value", ["", "tall", "nan", "inf", "1 2"])
def test_what_is_no_number_is_named(value):
    table = pd.DataFrame({"x": ["1", "-2.5e1", value]})
    with pytest.raises(InputError, match=f"sizes: column 'x' has '{value}'"):
        numbers(table, "x", "sizes")
    assert numbers(table[:2], "x", "sizes").tolist() == [1.0, -25.0]


def test_some_of_many_names():
    assert some(["a", "b"]) == "a, b"
    assert some(["a", "b", "c"]) == "a, b, c"
    assert some([str(n) for n in range(1003)]) == "0, 1, 2 and 1,000 more"
