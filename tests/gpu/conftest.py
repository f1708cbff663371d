"""The device of these tests: each runs on the CPU, in the half precision of a GPU, and on a GPU where there is one."""

from collections.abc import Iterator

import pytest
import torch
from accelerate.state import AcceleratorState

from siimcovid.core import device as core_device
from siimcovid.training import training_loop


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request, monkeypatch) -> Iterator[torch.device]:
    """The device that `choose_device` gives; training runs in float16 with a scaled loss on either."""
    AcceleratorState._reset_state(reset_partial_state=True)  # accelerate keeps its first answer
    if request.param == "cpu":
        monkeypatch.setattr(core_device, "_tested", lambda: (0, None))
        monkeypatch.setattr(training_loop, "autocast_type", lambda device: torch.float16)
    yield torch.device(request.param)
    AcceleratorState._reset_state(reset_partial_state=True)
