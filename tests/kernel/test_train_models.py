"""Training for a run where memory is short."""

from pathlib import Path

import pytest

from siimcovid.core.presets import DEMO
from siimcovid.kernel import stage_models, train_models
from siimcovid.kernel.notebook_parameters import Parameters
from siimcovid.kernel.run import Run
from siimcovid.kernel.time_budget import TimeBudget


def test_every_kind_of_lacking_memory_halves_the_batch_and_keeps_what_was_trained(tmp_path, monkeypatch):
    run = Run(Parameters(tmp_path, preset=DEMO, mode="finetune"), TimeBudget(1.0, 0.0, lambda: 0.0))
    state = tmp_path / "weights" / "rcnn.resume.pt"
    state.parent.mkdir()
    state.touch()
    errors = [RuntimeError("training stage rcnn failed: cuDNN error: CUDNN_STATUS_NOT_INITIALIZED"), MemoryError()]
    seen = []

    def fit(run, name, *given, **options):
        seen.append(run.preset.rcnn.training.batch)
        if errors:
            raise errors.pop(0)
        return Path("trained")

    monkeypatch.setattr(stage_models, "fit", fit)
    monkeypatch.setattr(stage_models, "member_images", lambda run, name: (run.preset, run.prepared_images))
    assert train_models._train_in_smaller_batches(run, "rcnn", None) == Path("trained")
    batch = DEMO.rcnn.training.batch
    assert seen == [batch, batch // 2, batch // 4]
    assert state.is_file()
    errors.append(RuntimeError("another error"))
    with pytest.raises(RuntimeError, match="another error"):
        train_models._train_in_smaller_batches(run, "rcnn", None)
