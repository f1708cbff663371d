"""Predicting the test images where memory is short."""

import pytest

from siimcovid.core.presets import SMALL
from siimcovid.inference import predictor
from siimcovid.kernel import predict_test_images
from siimcovid.kernel.parameters import Parameters
from siimcovid.kernel.run import Run
from siimcovid.kernel.time_budget import TimeBudget


def test_every_kind_of_lacking_memory_halves_the_batch(tmp_path, monkeypatch):
    """In the end a single image is predicted on the CPU; another error is raised as it is."""
    run, seen = Run(Parameters(tmp_path, preset=SMALL), TimeBudget(1.0, 0.0, lambda: 0.0)), []
    errors = [RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"), RuntimeError("out of memory"), MemoryError()]

    def predict_images(stage, config, model, images, folder, hflip, device, *rest, **options):
        seen.append((config.infer_batch, device))
        if errors:
            raise errors.pop(0)
        return "predictions"

    monkeypatch.setattr(predictor, "predict_images", predict_images)
    config = predict_test_images.replace(SMALL.rcnn, infer_batch=4)
    arguments = run, "detect", "rcnn", config, None, False, None, None, None
    assert predict_test_images.in_smaller_batches(*arguments) == "predictions"
    assert seen == [(4, None), (2, None), (1, None), (1, "cpu")]
    errors.append(RuntimeError("another error"))
    with pytest.raises(RuntimeError, match="another error"):
        predict_test_images.in_smaller_batches(*arguments)
