"""Progress bars where somebody watches: on a terminal, and nowhere else."""

from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


def progress_bar(
    iterable: Iterable | None = None, desc: str = "", unit: str = "it", total: int | None = None, **options: Any
) -> tqdm:
    """tqdm's bar over `iterable`, silent where stderr is no terminal: in a notebook, a log file or a test.

    Args:
        iterable: what is gone through; None for a bar that is moved by `update`.
        desc: what is being done, a few words.
        unit: what is counted, in the singular.
        total: the number of items, where `iterable` does not say it.
        options: further ones of tqdm's; `disable=True` silences the bar on a terminal too.
    """
    options = {"mininterval": 0.5, "disable": None} | options
    return tqdm(iterable, desc=desc, unit=unit, total=total, **options)
