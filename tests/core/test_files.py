"""Files are whole or absent; tables and JSON are written the same way everywhere."""

import json
import math

import numpy as np
import pandas as pd
import pytest

from siimcovid.core.files import nan_to_null, write_csv, write_json


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


def test_nan_is_written_as_null(tmp_path):
    tree = {"a": {"b": math.nan, "c": [1.5, np.float64("nan")]}, "d": (None, "nan", 3, True)}
    write_json(tmp_path / "a.json", nan_to_null(tree))
    expected = {"a": {"b": None, "c": [1.5, None]}, "d": [None, "nan", 3, True]}
    assert json.loads((tmp_path / "a.json").read_text()) == expected
