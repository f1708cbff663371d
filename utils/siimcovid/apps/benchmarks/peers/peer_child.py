"""The process of one contender: `python -m siimcovid.apps.benchmarks.peers.peer_child JOB`, see peer_job.py.

It ends when the process that started it does, whose pipe its stdin is.
"""

import importlib
import sys
from pathlib import Path

from siimcovid.apps.benchmarks.peers import CONTENDERS
from siimcovid.apps.benchmarks.peers.peer_job import read_job, write_outcome
from siimcovid.core.program_start import spare_old_objects
from siimcovid.training.job_child import end_with_parent


def contend(path: Path) -> None:
    """Do a job and write what came of it."""
    job = read_job(path)
    module = importlib.import_module(f"siimcovid.apps.benchmarks.peers.{CONTENDERS[job.name].module}")
    import torch  # not before a wrong name has been refused

    torch.set_num_threads(job.threads)
    torch.manual_seed(job.seed)
    write_outcome(job, *module.contend(job, *job.images()))


if __name__ == "__main__":
    spare_old_objects()
    end_with_parent()
    contend(Path(sys.argv[1]))
