"""How many of the hours are left. Only this class reads the time, from a source that a test can replace."""

import time
from collections.abc import Callable
from dataclasses import dataclass

#: Share of the hours that no step is planned for: it pays for what no measurement on the first images foresees.
RESERVE = 0.1

#: Share of the hours that nothing may use: writing the last submission, figures, and the end of the kernel.
LAST = 0.02


@dataclass
class TimeBudget:
    """Counts the hours from `started`; both that and `now()` are seconds of the same source."""

    hours: float
    started: float | None = None  # None for the moment it is made
    now: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        if self.started is None:
            self.started = self.now()

    def spent(self) -> float:
        """Seconds since the start."""
        return self.now() - self.started

    def left(self) -> float:
        """Seconds that may be planned for; below 0 where the reserve is being used."""
        return self.hours * 3600 * (1 - RESERVE) - self.spent()

    def left_with_reserve(self) -> float:
        """Seconds that predicting the test images may use: the reserve is theirs where training overran its price."""
        return self.hours * 3600 * (1 - LAST) - self.spent()
