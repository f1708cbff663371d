"""A training's process that trains nothing: what it does instead depends on the stage. For test_side_by_side.py."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from siimcovid.training.job_child import end_with_parent

#: What a process is told about its place.
TOLD = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "SIIMCOVID_SHARED_BY")

#: Seconds that a process lives at most, should nothing end it.
LIMIT = 60


def main(path: Path) -> None:
    stage = path.name.partition(".")[0]
    facts = json.loads(path.read_text())
    told = {name: os.environ.get(name) for name in TOLD} | {key: facts[key] for key in ("threads", "foreseen")}
    (path.parent / f"{stage}.told.json").write_text(json.dumps(told))
    outcome = {"seconds": 1.5, "out_of_time": False, "failure": "", "trace": ""}
    if stage == "rcnn":  # is trained, with a word of a library on the way
        print("rcnn 1/2  loss .412")
        print("a warning", file=sys.stderr)
        time.sleep(0.2)
        print("rcnn 2/2  loss .312\na last line without its end", end="")
    elif stage == "yolo":  # raises an error
        outcome |= {"failure": "NotFiniteError: the loss is nan", "trace": "Traceback of it"}
    elif stage == "study":  # is killed without a word
        os.kill(os.getpid(), signal.SIGKILL)
    elif stage == "retinanet":  # ends before it could say why
        print("ModuleNotFoundError: No module named 'x'", file=sys.stderr)
        sys.exit(3)
    else:  # takes long, as does a process that it starts
        subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({LIMIT})"])
        (path.parent / f"{stage}.pid").write_text(str(os.getpid()))
        time.sleep(LIMIT)
    path.with_name(f"{stage}.outcome.json").write_text(json.dumps(outcome))


if __name__ == "__main__":
    end_with_parent()
    main(Path(sys.argv[1]))
