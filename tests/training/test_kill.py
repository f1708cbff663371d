"""Every stage, killed by SIGKILL at ten random moments and started again, ends with the bytes of one left alone."""

import cv2
import numpy as np
import pandas as pd
import pytest

from siimcovid.core.configuration import Preset
from siimcovid.core.labels import NIH_FINDINGS, STUDY_LABELS
from siimcovid.core.presets import load_preset
from siimcovid.data.competition import index_table
from siimcovid.models import checkpoints
from support.killed_training import Killer

pytestmark = pytest.mark.slow

KILLS = 10


@pytest.fixture(scope="module")
def killer() -> Killer:
    return Killer(seed=0)


@pytest.fixture(scope="module")
def samples(tmp_path_factory) -> tuple:
    """Eight small images with study labels, boxes and findings."""
    folder, rng, rows = tmp_path_factory.mktemp("samples"), np.random.default_rng(0), []
    for k in range(8):
        cv2.imwrite(str(folder / f"image{k}.png"), rng.integers(0, 256, (64, 64), dtype=np.uint8))
        row = dict.fromkeys(("image_id", "study_id", "series_id", "patient_id"), f"image{k}")
        row |= {"split": "train", "path": "", "rows": 64, "columns": 64, "boxes": [[0.2, 0.3, 0.6, 0.8]] * (k % 2)}
        rows.append(row | {"study_label": STUDY_LABELS[k % 4], "annotated": True})
    findings = pd.DataFrame(rng.integers(0, 2, (8, len(NIH_FINDINGS))), columns=list(NIH_FINDINGS))
    return folder, index_table(rows).join(findings)


def tiny(stage: str) -> Preset:
    """Four epochs of four batches with all that a run carries: averages, momentum, dropout, new images, best epoch."""
    small = {"size": 64, "infer_size": 64, "training.epochs": 4, "training.batch": 1, "training.nominal_batch": 2}
    small |= {"backbone": "shufflenet_v2_x0_5"}  # a third of the parameters: most of the time went into writing them
    small |= {"training.ema": 0.9, "training.validate": True}
    return load_preset("demo", {f"{stage}.{key}": value for key, value in small.items()} | {"folds": 2})


@pytest.mark.parametrize("stage", checkpoints.STAGES)
def test_killed_at_ten_random_moments(stage, samples, killer, tmp_path):
    folder, images = samples
    task = stage, tiny(stage), images, folder
    _, whole_seconds = killer.run(*task, tmp_path / "whole")
    expected, kills, runs = (tmp_path / "whole" / f"{stage}.safetensors").read_bytes(), 0, 0
    while kills < KILLS:
        runs += 1
        out = tmp_path / f"killed{runs}"
        killed = True
        while killed and kills < KILLS:
            killed, _ = killer.run(*task, out, at_most=whole_seconds)
            kills += killed
        if killed:
            killer.run(*task, out)
        assert (out / f"{stage}.safetensors").read_bytes() == expected
        assert [path.name for path in out.glob(".*")] == []
