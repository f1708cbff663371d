"""Runs a property on many drawn inputs: a few in every test run, as many as the time allows with FUZZ_MINUTES."""

import os
import random
import time
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, given, seed, settings
from hypothesis.strategies import SearchStrategy

#: Minutes for each property; without it, or with 0, each gets a few inputs, the same ones in every run.
MINUTES = float(os.environ.get("FUZZ_MINUTES") or 0)

#: Inputs of one round of a long run; each round begins with another seed.
ROUND = 500


def fuzz(strategy: SearchStrategy, check: Callable[[Any], None], examples: int = 100) -> int:
    """Call `check` with inputs that `strategy` draws; returns how many there were.

    Raises what `check` raises, for the smallest input that still makes it do so. examples: inputs of a short run.
    """
    tried = 0

    def counted(value: Any) -> None:
        nonlocal tried
        tried += 1
        check(value)

    usual = settings(database=None, deadline=None, suppress_health_check=list(HealthCheck), print_blob=False)
    if not MINUTES:
        settings(usual, max_examples=examples, derandomize=True)(given(strategy)(counted))()
        return tried
    until = time.monotonic() + 60 * MINUTES
    while time.monotonic() < until:
        test = given(strategy)(counted)
        seed(random.getrandbits(64))(settings(usual, max_examples=ROUND)(test))()
    print(f"{check.__name__}: {tried:,} inputs in {MINUTES:g} minutes")
    return tried
