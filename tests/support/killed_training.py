"""A stage's training in a process of its own that is killed at random moments and started again, for test_kill.py."""

import random
import time
from pathlib import Path

import pandas as pd

from siimcovid.core.configuration import Preset
from support.fork_server import fresh_fork_server

#: As long as the process lives at most, should something hang.
LIMIT = 120.0


def fit_saving_often(stage: str, preset: Preset, images: pd.DataFrame, folder: Path, out: Path) -> None:
    """stages.fit from random weights on one thread, its state written five times a second."""
    import gc
    import os
    import sys

    import torch

    from siimcovid.training import train_stage, training_loop

    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - what a hundred runs say
    torch.set_num_threads(1)
    gc.freeze()  # what is imported is no garbage: half a second less at the end of each training
    training_loop.SAVE_EVERY = 0.2
    train_stage.fit(stage, preset, images, folder, None, out)


class Killer:
    """Starts trainings in forks of one server, which has imported everything already, and kills some of them."""

    def __init__(self, seed: int):
        ours = ("training.train_stage", "models.faster_rcnn", "models.yolo", "models.retinanet")
        self.context = fresh_fork_server(f"siimcovid.{name}" for name in ours)
        self.moments = random.Random(seed)

    def run(self, *arguments: object, at_most: float | None = None) -> tuple[bool, float]:
        """Train, killing the process at a random moment within `at_most` seconds; (was it killed, seconds lived)."""
        process = self.context.Process(target=fit_saving_often, args=arguments)
        start = time.monotonic()
        process.start()
        process.join(LIMIT if at_most is None else self.moments.uniform(0, at_most))
        killed = process.is_alive()
        process.kill()
        process.join()
        assert killed or process.exitcode == 0
        assert at_most is not None or not killed, "it hangs"
        return killed, time.monotonic() - start
