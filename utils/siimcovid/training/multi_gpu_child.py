"""One of the processes that train a stage together: `torchrun -m siimcovid.training.multi_gpu_child JOB`.

In: a file of training_job.py, and a pipe on stdin that stays open as long as the one who waits lives. Out: the
training's files; what ends it stands beside the job in `failure.<stage>.<rank>.txt`.
"""

import os
import sys
import traceback
from pathlib import Path

from siimcovid.core.files import write_text
from siimcovid.core.program_start import spare_old_objects
from siimcovid.training.job_child import end_with_parent


def train(path: Path) -> None:
    """Do this process's part of the job of a file. Raises what ends it."""
    from siimcovid.training import train_stage
    from siimcovid.training.multi_gpu import ends_before
    from siimcovid.training.training_job import read_job

    job, _ = read_job(path)
    try:
        train_stage.fit(*job.arguments(), ends_before(job.deadline), **job.options())
    except BaseException as error:
        words = "".join(traceback.format_exception_only(error))
        write_text(job.out / f"failure.{job.stage}.{os.environ.get('RANK', '0')}.txt", words)
        raise


if __name__ == "__main__":
    spare_old_objects()
    end_with_parent()
    train(Path(sys.argv[1]))
