"""Files are whole or absent; tables and JSON are written the same way everywhere."""

import errno
import json
import math
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from siimcovid.core.errors import InputError, OutputError
from siimcovid.core.files import atomic_path, make_folder, nan_to_null, write_csv, write_json, write_text


def test_csv_is_whole_or_absent(tmp_path, monkeypatch):
    path = tmp_path / "new" / "a.csv"
    table = pd.DataFrame({"x": [1, 2], "y": ["a,b", None]}, index=["r", "s"])
    write_csv(table, path)
    assert path.read_bytes() == b'x,y\n1,"a,b"\n2,\n'
    write_csv(table, path, index=True)
    assert path.read_bytes() == b',x,y\nr,1,"a,b"\ns,2,\n'
    before = path.read_bytes()

    def torn(self, name, **options):
        name.write_text("half")
        raise OSError("no space left")

    monkeypatch.setattr(pd.DataFrame, "to_csv", torn)
    with pytest.raises(OSError, match="no space"):
        write_csv(table, path)
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == ["a.csv"]


@pytest.mark.parametrize("kind", ["csv", "json", "text"])
@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("file/a", "file is a file, not a folder: name another place, or move the file away"),
        ("file/b/a", "file is a file, not a folder"),
        ("folder", "it is a folder: name a file"),
        ("x" * 300, "File name too long: give a shorter name"),
        ("a\0b", "null"),
    ],
)
def test_a_place_that_cannot_be_written(tmp_path, kind, where, message):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    writers = {"csv": lambda path: write_csv(pd.DataFrame(), path), "json": lambda path: write_json(path, 1)}
    write = (writers | {"text": lambda path: write_text(path, "1")})[kind]
    with pytest.raises(InputError, match=message) as caught:
        write(tmp_path / where)
    assert isinstance(caught.value, OSError)  # who goes on without the file catches that
    assert str(caught.value).startswith(str(tmp_path))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "folder"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_a_disk_that_takes_nothing(tmp_path, monkeypatch, number):
    def refused(*arguments, **options):
        raise OSError(number, os.strerror(number))

    message = f"a.csv cannot be written, {os.strerror(number)}: "
    with pytest.raises(OutputError, match=message) as caught, atomic_path(tmp_path / "a.csv"):
        refused()
    assert caught.value.errno == number
    monkeypatch.setattr(Path, "mkdir", refused)
    with pytest.raises(OutputError, match=f"new cannot be written, {os.strerror(number)}: "):
        make_folder(tmp_path / "new")


def test_errors_of_other_files_stay_what_they_are(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "a.csv"):
        (tmp_path / "absent").read_text()
    with pytest.raises(IsADirectoryError), atomic_path(tmp_path / "a.csv"):
        (tmp_path).read_text()


def test_names_that_are_no_utf8(tmp_path):
    name = os.fsdecode(b"a\xff")
    write_text(tmp_path / name, name)
    assert (tmp_path / name).read_text(encoding="utf-8") == "a\\udcff"
    write_csv(pd.DataFrame({"path": [name]}), tmp_path / "a.csv")
    assert (tmp_path / "a.csv").read_text(encoding="utf-8") == "path\na\\udcff\n"


def test_nan_is_written_as_null(tmp_path):
    tree = {"a": {"b": math.nan, "c": [1.5, np.float64("nan")]}, "d": (None, "nan", 3, True)}
    write_json(tmp_path / "a.json", nan_to_null(tree))
    expected = {"a": {"b": None, "c": [1.5, None]}, "d": [None, "nan", 3, True]}
    assert json.loads((tmp_path / "a.json").read_text()) == expected
