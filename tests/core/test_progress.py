"""Progress bars: on a terminal only."""

import io
import sys

from siimcovid.core.progress import progress_bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_is_for_terminals(monkeypatch):
    for stream, shown in ((io.StringIO(), False), (Terminal(), True)):
        monkeypatch.setattr(sys, "stderr", stream)
        assert list(progress_bar(range(3), "count", "number", mininterval=0)) == [0, 1, 2]
        assert ("count: 100%" in stream.getvalue()) == shown
    assert list(progress_bar(range(3), "count", disable=True)) == [0, 1, 2]
    bar = progress_bar(None, "moved", "step", 2)
    bar.update()
    assert (bar.n, bar.total) == (1, 2)
