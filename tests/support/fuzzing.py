"""Runs properties on many drawn inputs: a few in every test run, the same each time; with FUZZ_MINUTES always others,
as many as fit into a property's share of these minutes.

tests/fuzz/conftest.py says how many properties share them, and prints what each has tried.
"""

import os
import random
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, given, seed, settings
from hypothesis.strategies import SearchStrategy

#: Minutes of a long run, of all properties together; 0 for a short one.
MINUTES = float(os.environ.get("FUZZ_MINUTES") or 0)

#: Inputs of one round of a long run; each round begins with another seed.
ROUND = 200

#: Property -> inputs that it has been given.
TRIED: Counter[str] = Counter()


class Share:
    """properties: how many share MINUTES."""

    properties = 1


def fuzz(check: Callable[..., Any], examples: int = 100, **strategies: SearchStrategy) -> int:
    """Call `check` with what the strategies draw for its arguments; returns how many inputs that were.

    Raises what `check` raises, for the smallest input that still makes it do so. examples: inputs of a short run.
    """
    name, tried = os.environ.get("PYTEST_CURRENT_TEST", "a property").split(" ")[0], 0

    def counted(**values: Any) -> None:
        nonlocal tried
        tried += 1
        TRIED[name] += 1
        check(**values)

    usual = settings(database=None, deadline=None, suppress_health_check=list(HealthCheck), print_blob=False)
    if not MINUTES:
        settings(usual, max_examples=examples, derandomize=True)(given(**strategies)(counted))()
        return tried
    until = time.monotonic() + 60 * MINUTES / Share.properties
    while time.monotonic() < until:
        test = given(**strategies)(counted)
        seed(random.getrandbits(64))(settings(usual, max_examples=ROUND)(test))()
    return tried


def fuzzed(examples: int, **strategies: SearchStrategy) -> Callable[[Callable], Callable[[], None]]:
    """Turn a property into a test that runs it by `fuzz`."""

    def decorate(check: Callable[..., None]) -> Callable[[], None]:
        def test() -> None:
            fuzz(check, examples, **strategies)

        test.__name__, test.__doc__ = check.__name__, check.__doc__
        return test

    return decorate
