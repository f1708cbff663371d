"""What catches a failing step: its error is recorded with the traceback, and the run goes on with a fallback.

Every error of the kernel's steps passes through `Recovery.recover`; nothing else in this folder catches `Exception`.
With `strict` the error is raised instead of recorded.
"""

import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

#: Characters of a reason that are printed; run.json has all of them.
PRINTED = 400


@dataclass
class Recovery:
    """The faults of a run so far.

    strict: raise errors instead of recording them.
    degraded: a dict per fault: `step`, `reason` (one line), `fallback` (what was done instead) and `traceback`.
    """

    strict: bool = False
    degraded: list[dict[str, str]] = field(default_factory=list)

    @contextmanager
    def recover(
        self,
        step: str,
        fallback: str,
        only: type[Exception] | Callable[[Exception], bool] = Exception,
        retried: bool = False,
    ) -> Iterator[None]:
        """Record an error that the body raises, and go on behind it.

        step: the step's name. fallback: what happens instead, to be read after "instead:". only: which errors, as
        a type or a function that tells; others, and with `strict` all of them, are raised. retried: the caller tries
        the same work again in another way, as with smaller batches, so that nothing is lost: not raised with `strict`
        either.
        """
        try:
            yield
        except Exception as error:
            wanted = isinstance(error, only) if isinstance(only, type) else only(error)
            if not wanted or (self.strict and not retried):
                raise
            self.degrade(step, str(error) or type(error).__name__, fallback, traceback.format_exc())

    def degrade(self, step: str, reason: str, fallback: str, trace: str = "") -> None:
        """Record a fault, and print it to stderr at once."""
        reason = " ".join(reason.split())
        self.degraded.append({"step": step, "reason": reason, "fallback": fallback, "traceback": trace})
        print(f"DEGRADED {step}: {shortened(reason)}; instead: {fallback}", file=sys.stderr)


def shortened(text: str, length: int = PRINTED) -> str:
    """The text itself, or its first `length` characters and an ellipsis."""
    return text if len(text) <= length else f"{text[:length]} …"
