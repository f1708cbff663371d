"""Predicting the test images where memory is short, and saying which are unlike those of training."""

import pandas as pd
import pytest

from siimcovid.core.presets import DEMO
from siimcovid.inference import predictor
from siimcovid.kernel import predict_test_images
from siimcovid.kernel.notebook_parameters import Parameters
from siimcovid.kernel.run import Run
from siimcovid.kernel.time_budget import TimeBudget
from siimcovid.models.out_of_distribution import SENTENCE


def test_every_kind_of_lacking_memory_halves_the_batch(tmp_path, monkeypatch):
    """In the end a single image is predicted on the CPU; another error is raised as it is."""
    run, seen = Run(Parameters(tmp_path, preset=DEMO), TimeBudget(1.0, 0.0, lambda: 0.0)), []
    errors = [RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"), RuntimeError("out of memory"), MemoryError()]

    def predict_images(stage, config, model, images, folder, hflip, device, *rest, **options):
        seen.append((config.infer_batch, device))
        if errors:
            raise errors.pop(0)
        return "predictions"

    monkeypatch.setattr(predictor, "predict_images", predict_images)
    config = predict_test_images.replace(DEMO.rcnn, infer_batch=4)
    arguments = run, "detect", "rcnn", config, None, False, None, None, None
    assert predict_test_images.in_smaller_batches(*arguments) == "predictions"
    assert seen == [(4, None), (2, None), (1, None), (1, "cpu")]
    errors.append(RuntimeError("another error"))
    with pytest.raises(RuntimeError, match="another error"):
        predict_test_images.in_smaller_batches(*arguments)


def test_images_unlike_those_of_training_are_noticed_once(tmp_path):
    """Beside what was noticed of their files; a second prediction replaces the first one's notices."""
    run = Run(Parameters(tmp_path, preset=DEMO), TimeBudget(1.0, 0.0, lambda: 0.0))
    run.record.notices = pd.DataFrame({"image_id": ["a"], "notice": ["is turned"]})
    for unlike, noticed in [((0.9, 0.5, 0.1), ["a"]), ((0.1, 0.51, 0.7), ["b", "c"]), ((0.1, 0.1, 0.1), [])]:
        predict_test_images.note_unlike(run, pd.DataFrame({"image_id": list("abc"), "unlike": unlike}))
        assert run.record.notices.to_numpy().tolist() == [["a", "is turned"], *([name, SENTENCE] for name in noticed)]
    predict_test_images.note_unlike(run, pd.DataFrame({"image_id": list("abc")}))  # of a model that does not say it
    assert run.record.notices["image_id"].tolist() == ["a"]
