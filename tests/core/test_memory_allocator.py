"""Memory that was freed is used again, and not fetched from the system page by page."""

import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys
import numpy as np
from siimcovid.core.memory_allocator import keep_freed_memory
kept = keep_freed_memory() if sys.argv[1] == "keep" else True
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
np.ones(80 << 20, np.uint8)  # larger than what glibc ever keeps by itself
before = faults()
for _ in range(10):
    np.ones(80 << 20, np.uint8)
print(int(kept), faults() - before)
"""


def page_faults(how: str) -> tuple[bool, int]:
    """Whether the setting took, and the page faults of ten arrays after a first one of their size."""
    done = subprocess.run([sys.executable, "-c", SCRIPT, how], capture_output=True, text=True, check=True)
    kept, faults = done.stdout.split()
    return bool(int(kept)), int(faults)


def test_ten_arrays_take_the_pages_of_the_first():
    kept, faults = page_faults("keep")
    if not kept:
        pytest.skip("the C library has no mallopt")
    assert faults * 10 < page_faults("plain")[1]
