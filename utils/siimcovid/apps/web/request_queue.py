"""How many requests are worked on at a time, how many wait, and that the rest are told to come back."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from siimcovid.apps.web.request_errors import RequestError

#: Seconds after which a client that was turned away should try again.
RETRY_AFTER = 2


class Queue:
    """`places` for work and `waiting` before them; `patience` seconds is the longest that one waits."""

    def __init__(self, places: int = 1, waiting: int = 16, patience: float = 60.0):
        self.limit, self.patience = places + waiting, patience
        self.inside = 0
        self._count = threading.Lock()
        self._places = threading.Semaphore(places)

    @contextmanager
    def place(self) -> Iterator[None]:
        """Wait for a place and hold it. Raises RequestError "busy" where the queue is full or too slow."""
        busy = RequestError("busy", "The server is busy with other images: try again in a few seconds.")
        with self._count:
            if self.inside >= self.limit:
                raise busy
            self.inside += 1
        try:
            if not self._places.acquire(timeout=self.patience):
                raise busy
            try:
                yield
            finally:
                self._places.release()
        finally:
            with self._count:
                self.inside -= 1
