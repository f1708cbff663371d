"""A process that trains one model beside others, as side_by_side.py starts it.

In: a file of training_job.py with `threads` and `foreseen`, and a pipe on stdin that stays open as long as the parent
lives. Out: the training's files, and `<stage>.outcome.json`, the fields of side_by_side.Outcome.
"""

import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path

from siimcovid.core.files import write_json
from siimcovid.core.program_start import spare_old_objects


def end_with_parent() -> None:
    """End this process, and those that it started, once the parent is gone: stdin is at its end then.

    The process leads a group of its own. What it was writing is replaced whole or not at all.
    """

    def watch() -> None:
        while os.read(0, 1):  # not by sys.stdin, whose lock Python wants when it ends
            pass
        os.killpg(os.getpgrp(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


class TimeForEpochs:
    """`may_start_epoch` for a deadline by time.time.

    An epoch takes more than its training steps: the fold that it holds out is predicted, and its state is written. So
    what counts is the time from one question to the next; at the first question, the seconds that were foreseen.

    deadline: when the last epoch must have ended. foreseen: seconds of a whole epoch. over: whether it said no.
    """

    def __init__(self, deadline: float, foreseen: float):
        self.deadline, self.foreseen, self.asked, self.over = deadline, foreseen, 0.0, False

    def __call__(self, seconds: float) -> bool:
        """Whether another epoch fits. seconds: of the training steps of the last."""
        now = time.time()
        whole = max(seconds, now - self.asked if self.asked else self.foreseen)
        self.asked, self.over = now, now + whole >= self.deadline
        return not self.over


def train(path: Path) -> bool:
    """Do the job of a file and write what came of it; whether there is a checkpoint."""
    begin, outcome = time.monotonic(), {"out_of_time": False, "failure": "", "trace": ""}
    try:
        import torch

        from siimcovid.training import train_stage
        from siimcovid.training.training_job import read_job

        job, facts = read_job(path)
        torch.set_num_threads(facts["threads"])
        may_start_epoch = TimeForEpochs(job.deadline, facts["foreseen"])
        train_stage.fit(*job.arguments(), may_start_epoch, **job.options())
        outcome["out_of_time"] = may_start_epoch.over
    except BaseException as error:
        outcome["failure"] = "".join(traceback.format_exception_only(error)).strip()
        outcome["trace"] = traceback.format_exc()
    outcome["seconds"] = round(time.monotonic() - begin, 2)
    write_json(path.with_name(path.name.replace(".job.json", ".outcome.json")), outcome)
    return not outcome["failure"]


if __name__ == "__main__":
    spare_old_objects()
    end_with_parent()
    sys.exit(0 if train(Path(sys.argv[1])) else 1)
