"""The notebook's parameters: every wrong type or value is one sentence that names it, and the default is taken."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from siimcovid.core.errors import InputError
from siimcovid.core.presets import DEMO, FULL
from siimcovid.kernel.notebook_parameters import Parameters, check_parameters
from siimcovid.kernel.recovery import Recovery

ANY = object()  # a value of no use for any parameter

STRICT = [
    *((value, True) for value in (True, 1, "true", "True", " TRUE ", "1", "yes", "on", np.bool_(True))),
    *((value, False) for value in (False, 0, "false", "False", "0", "no", "off", np.bool_(False))),
]
VALID = [
    ("hours", 9, 9.0),
    ("hours", "4.5", 4.5),
    ("hours", " 1e-9 ", 1e-9),
    ("hours", np.float32(2), 2.0),
    ("sessions", 2, 2),
    ("sessions", "3", 3),
    ("sessions", np.int64(1), 1),
    ("jobs", 0, 0),
    ("jobs", "2", 2),
    ("mode", "finetune", "finetune"),
    ("mode", " Infer ", "infer"),
    ("competition_dir", "", None),
    ("competition_dir", None, None),
    ("weights_dir", "  ", None),
    ("overrides", None, {}),
    ("overrides", "", {}),
    ("overrides", "{}", {}),
    ("overrides", '{"rcnn.training.epochs": 3}', {"rcnn.training.epochs": 3}),
    ("overrides", {"members": 2, "folds": 2}, {"members": 2, "folds": 2}),
    ("seed", None, {}),
    ("seed", 7, {"seed": 7}),
    ("seed", "7", {"seed": 7}),
    ("seed", 7.0, {"seed": 7}),
    ("seed", np.int64(0), {"seed": 0}),
]
#: Parameter, wrong values, what the sentence says.
INVALID = [
    ("strict", (None, "", "maybe", 2, -1, 0.5, math.nan, [True], {}, ANY), "STRICT must be true or false"),
    (
        "hours",
        (0, -1, "nine", "", None, True, math.nan, math.inf, "inf", "nan", [9], {}, 1j, 10**400, "9 h", ANY),
        "HOURS must be a number above 0",
    ),
    (
        "sessions",
        (0, -1, 1.5, "two", "", None, True, math.nan, math.inf, [2], {}, 1j, "1.5", ANY),
        "SESSIONS must be a whole number of 1 or more",
    ),
    (
        "jobs",
        (-1, 1.5, "two", "", None, True, math.nan, math.inf, [2], {}, 1j, ANY),
        "JOBS must be a whole number of 0 or more",
    ),
    ("mode", ("train", "", None, 1, True, ["infer"], {}, ANY), "MODE must be 'infer' or 'finetune'"),
    (
        "preset",
        ("medium", "", None, 1, ["demo"], {}, DEMO, ANY),
        "PRESET must be 'full' or 'small' or 'demo' or 'best'",
    ),
    (
        "seed",
        (-1, 2**32, 1.5, "seven", True, math.nan, math.inf, [1], "1.0", ANY),
        "SEED must be a whole number",
    ),
    (
        "overrides",
        ("rcnn.epochs=3", "[1]", "3", "{", "NaN", [], [1], 3, 1.5, True, {1: 2}, {None: 1}, ANY, "[" * 9999),
        "OVERRIDES must be",
    ),
    (
        "overrides",
        (
            {"rcnn.epochs": 3},
            {"rcnn": 3},
            {"": 1},
            {"rcnn.training.epochs": "three"},
            {"rcnn.training.epochs": None},
            {"rcnn.training.epochs": [3]},
            {"rcnn.training.epochs": True},
            {"rcnn.training.learning_rate": math.nan},
            {"rcnn.training.epochs": math.inf},
            {"fusion.weights": [1.0, math.nan]},
            {"fusion.weights": [1.0]},
            {"fusion.detectors": ["rcnn", "ssd"]},
            {"members": 0},
            {"name": {}},
        ),
        "OVERRIDES: ",
    ),
    ("competition_dir", (2021, 1.5, True, ["a"], {}, b"a", ANY), "COMPETITION_DIR must be the path"),
    ("weights_dir", (2021, False, ["a"], ANY), "WEIGHTS_DIR must be the path"),
    ("output_dir", (2021, True, ["a"], ANY), "OUTPUT_DIR must be the path"),
    ("competition_dir", ("a\0b", "~nobody-has-this-name/x"), "COMPETITION_DIR"),
    ("competition_dir", ("/nowhere", "x" * 5000, "/dev/null", "/dev/null/x"), "COMPETITION_DIR must be a folder"),
    ("weights_dir", (Path("/nowhere"),), "WEIGHTS_DIR must be a folder, and '/nowhere' is missing"),
    ("output_dir", ("/dev/null/out", "x" * 5000, "a\0b", "/proc/out"), "OUTPUT_DIR"),
]
BAD = [(name, value, said) for name, values, said in INVALID for value in values]


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(("value", "expected"), STRICT)
def test_strict(value, expected):
    recovery = Recovery()
    check_parameters({"strict": value}, recovery)
    assert (recovery.strict, recovery.degraded) == (expected, [])


@pytest.mark.parametrize(("name", "value", "expected"), VALID)
def test_valid_values(name, value, expected):
    found = check_parameters({name: value}, recovery := Recovery())
    assert getattr(found, "overrides" if name == "seed" else name) == expected
    assert recovery.degraded == []
    assert found.preset.seed == (expected or {}).get("seed", 0) if name == "seed" else True


@pytest.mark.parametrize(("name", "value", "said"), BAD, ids=[f"{name}-{k}" for k, (name, *_) in enumerate(BAD)])
def test_a_wrong_value_is_one_sentence_and_the_default_runs(name, value, said, capsys):
    found = check_parameters({name: value}, recovery := Recovery())
    assert found == check_parameters({}, Recovery())
    (fault,) = recovery.degraded
    assert said in fault["reason"]
    assert fault["step"] == "parameters"
    assert len(fault["reason"]) < 600
    assert len(capsys.readouterr().err.splitlines()) == 1
    with pytest.raises(InputError, match=name.upper()):
        check_parameters({"strict": True, name: value}, recovery := Recovery(strict=name == "strict"))


def test_all_wrong_at_once():
    wrong = {name: value for name, value, _ in BAD}
    recovery = Recovery()
    assert check_parameters(wrong, recovery) == Parameters(Path.cwd())
    assert len(recovery.degraded) == len(wrong)


def test_overrides_go_before_the_seed():
    found = check_parameters({"preset": "demo", "seed": 7, "overrides": {"seed": 9}}, Recovery())
    assert (found.preset.name, found.preset.seed, found.overrides) == ("demo", 9, {"seed": 9})
    kept = check_parameters({"preset": "demo", "seed": 7, "overrides": {"nothing": 9}}, Recovery())
    assert (kept.preset.seed, kept.overrides) == (7, {"seed": 7})
    assert check_parameters({}, Recovery()).preset is FULL


def test_folders_are_absolute_and_made(tmp_path):
    (tmp_path / "given").mkdir()
    found = check_parameters({"competition_dir": "given", "output_dir": "new/out"}, Recovery())
    assert found.competition_dir == tmp_path / "given"
    assert found.output_dir == tmp_path / "new" / "out"
    assert list(found.output_dir.iterdir()) == []
    json.dumps(str(found.output_dir))
