"""run.json is standard JSON whatever stands in it, and damaged ones are read as far as they can be."""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from siimcovid.kernel.recovery import Recovery
from siimcovid.kernel.run_record import RunRecord, read_record, to_json, write_record


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (math.nan, None),
        (-math.inf, None),
        (np.float32("nan"), None),
        (np.float64(0.5), 0.5),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (pd.NA, None),
        (pd.NaT, None),
        ((1, [math.nan, {"a": math.inf}]), [1, [None, {"a": None}]]),
        ({3: np.array([1.0, math.nan])}, {"3": [1.0, None]}),
        (Path("a"), "a"),
        (None, None),
        ("NaN", "NaN"),
    ],
)
def test_values_as_json_has_them(value, expected):
    assert to_json(value) == expected
    json.dumps(to_json(value), allow_nan=False)


def test_a_record_with_nan_is_read_again(tmp_path):
    write_record(tmp_path / "run.json", {"seconds": {"fit rcnn": math.nan}, "plan": None})
    assert read_record(tmp_path / "run.json") == {"seconds": {"fit rcnn": None}, "plan": None}
    (tmp_path / "old.json").write_text('{"mean": NaN, "best": -Infinity}')
    assert read_record(tmp_path / "old.json") == {"mean": None, "best": None}


@pytest.mark.parametrize("text", ["", "{", '{"mode": "infer", "plan": 7', "\0", "[" * 100_000])
def test_a_damaged_record_is_none(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    assert read_record(tmp_path / "run.json") is None
    assert read_record(tmp_path / "none.json") is None


def test_what_was_predicted_of_a_done_step_stays():
    record = RunRecord()
    record.predict({"detect": 10.0, "classify": 5.0})
    record.add_seconds("detect", 12.0)
    record.predict({"detect": 12.0, "classify": 6.0})
    assert record.predicted == {"detect": 10.0, "classify": 6.0}
    assert record.step_table()[0] == {"step": "detect", "predicted_seconds": 10.0, "seconds": 12.0}


def test_recovery_records_or_raises(capsys):
    recovery = Recovery()
    with recovery.recover("detect", "no boxes"):
        raise ValueError("two\nlines")
    (fault,) = recovery.degraded
    assert (fault["step"], fault["reason"], fault["fallback"]) == ("detect", "two lines", "no boxes")
    assert "Traceback" in fault["traceback"]
    assert capsys.readouterr().err == "DEGRADED detect: two lines; instead: no boxes\n"
    with pytest.raises(KeyError), recovery.recover("detect", "no boxes", only=ValueError):
        raise KeyError("another kind")
    recovery.strict = True
    with recovery.recover("detect", "half the batch", MemoryError, retried=True):
        raise MemoryError("tried again")
    assert recovery.degraded[-1]["fallback"] == "half the batch"
    with pytest.raises(ValueError, match="again"), recovery.recover("detect", "no boxes"):
        raise ValueError("again")
