"""A tiny competition and tiny weights, copied for each test that breaks something in them."""

import os
import shutil
from pathlib import Path

import pytest

from siimcovid.core import stage_names
from siimcovid.kernel import stage_models
from siimcovid.synthetic.demo_competition import write_competition
from support.fault_scenes import Scene
from support.kernel_cells import draw_nothing
from support.tiny_weights import write_weights

LOADED: dict = {}


@pytest.fixture(scope="session")
def material(tmp_path_factory) -> Path:
    """A competition with three studies to test on, and weights."""
    top = tmp_path_factory.mktemp("material")
    write_competition(top / "competition", train_studies=8, test_studies=3, seed=3, scale=0.03)
    write_weights(top / "weights", stage_names.SUBMISSION_STAGES)
    return top


@pytest.fixture
def scene(material, tmp_path, monkeypatch) -> Scene:
    for name in ("competition", "competition.truth", "weights"):
        shutil.copytree(material / name, tmp_path / name, copy_function=os.link)
    original = tmp_path / "original"
    original.mkdir()
    os.link(material / "competition" / "sample_submission.csv", original / "sample_submission.csv")
    draw_nothing(monkeypatch.setattr)
    real = stage_models.read

    def read(path: Path, stage: str):  # building a model takes longer than all that it does here
        key = path.stat().st_ino, stage
        if key not in LOADED:
            LOADED[key] = real(path, stage)
        return LOADED[key]

    monkeypatch.setattr(stage_models, "read", read)
    return Scene(tmp_path, monkeypatch, original)
