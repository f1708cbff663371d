"""Parameters of any type and value: checking them raises nothing but a sentence, and what comes out can run."""

import json
import math
import os
from pathlib import Path

import pytest
from hypothesis import strategies as st

from siimcovid.core.configuration import Preset
from siimcovid.core.errors import InputError
from siimcovid.core.overrides import leaf_keys
from siimcovid.core.presets import DEMO
from siimcovid.kernel.notebook_parameters import MODES, check_parameters
from siimcovid.kernel.recovery import Recovery
from siimcovid.kernel.run_record import to_json
from support.fuzzing import fuzz, fuzzed

plain = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.binary(max_size=5),
    st.complex_numbers(),
)
anything = st.recursive(
    plain,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=6,
)
keys = st.sampled_from(sorted(leaf_keys(DEMO))) | st.text(max_size=12)
overrides = (
    st.dictionaries(keys, anything, max_size=3) | anything | st.text(alphabet='{}[]":,.0123456789eE-naNrc', max_size=30)
)
parameters = st.fixed_dictionaries(
    {},
    optional={
        "strict": anything,
        "hours": anything,
        "seed": anything,
        "mode": anything | st.sampled_from(MODES),
        "preset": anything | st.sampled_from(["demo", "full"]),
        "competition_dir": anything,
        "weights_dir": anything,
        "output_dir": anything.filter(lambda value: not isinstance(value, str) or not set(value) & set("/~.")),
        "overrides": overrides,
    },
)


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder of its own to make OUTPUT_DIR in."""
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("parameters"))
    yield
    os.chdir(before)


def test_any_parameters(here):
    def is_refused_or_can_run(given_values):
        recovery = Recovery()
        try:
            found = check_parameters(given_values, recovery)
        except InputError:
            assert recovery.strict
            return
        assert isinstance(found.preset, Preset)
        assert 0 < found.hours < math.inf
        assert found.mode in MODES
        assert found.output_dir.is_dir()
        assert all(fault["step"] == "parameters" and fault["reason"] for fault in recovery.degraded)

    fuzz(is_refused_or_can_run, 60, given_values=parameters)


@fuzzed(60, value=anything)
def test_any_value_becomes_standard_json(value):
    json.loads(json.dumps(to_json(value), allow_nan=False))
