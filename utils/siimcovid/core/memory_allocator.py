"""How the C library gives memory to PyTorch's CPU tensors.

By default glibc hands each freed tensor of some megabytes back to the system and asks for it again at the next step,
page by page: a tenth to a third of the processor time of a training step (docs/benchmarks.md).
"""

import ctypes

#: Parameters of glibc's mallopt(3), from its malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4

#: Bytes that the heap grows by at a time.
GROWTH = 64 << 20


def keep_freed_memory() -> bool:
    """Let this process keep what it frees, for its next tensors: its memory stays at the highest that it needed.

    Returns whether it could be done: not with another C library than glibc, whose allocator is left as it is.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    settings = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, GROWTH))
    return all(mallopt(parameter, value) == 1 for parameter, value in settings)
