"""SIGTERM in the middle of every step, a restart each time: the same bytes in the end as of a run left alone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from siimcovid.core import stage_names
from siimcovid.evaluation import submission_validator
from siimcovid.models import published_weights
from siimcovid.synthetic.demo_competition import write_competition
from support import restarts

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> tuple[Path, list[list[str]]]:
    """The folder of both runs with the competition, and what was printed of each start."""
    top = tmp_path_factory.mktemp("restart")
    write_competition(top / "competition", train_studies=8, test_studies=3, seed=2, scale=0.03)
    published_weights.import_weights("efficientnet_lite0", None, top / "imagenet")
    # as text, since every worker would read a file again
    program = "import sys; from support import restarts; restarts.main(*sys.argv[1:])"
    command = [sys.executable, "-c", program, *(str(top / name) for name in ("competition", "imagenet", "."))]
    paths = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    print(done.stdout)
    return top, [line.split(",")[1:5] for line in done.stdout.splitlines() if line.startswith("START,")]


def test_every_step_was_ended_and_nothing_degraded(runs):
    """SIGTERM is 15; there is a submission from the first step on."""
    ended = [["killed", point, "-15", "True"] for point in restarts.POINTS]
    assert runs[1] == [["whole", "", "0", "True"], *ended, ["killed", "", "0", "True"]]


def test_the_same_bytes(runs):
    top, _ = runs
    names = [f"weights/{stage}{k}.safetensors" for stage in stage_names.SUBMISSION_STAGES for k in ("", ".1")]
    names += [f"weights/{folder}pseudo/{d}.safetensors" for folder in ("", "member_1/") for d in ("rcnn", "yolo")]
    names += [
        "detections.csv",
        "study_probabilities.csv",
        "submission.csv",
        "submissions/rcnn.csv",
        "submissions/yolo.csv",
    ]
    for name in names:
        assert (top / "killed" / name).read_bytes() == (top / "whole" / name).read_bytes(), name
    sample = top / "competition" / "sample_submission.csv"
    assert (
        submission_validator.validate(top / "killed" / "submission.csv", sample, top / "killed" / "index.csv").faults
        == []
    )
    assert not list((top / "killed" / "weights").rglob("*.resume.pt"))
