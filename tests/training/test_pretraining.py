"""Pretraining on NIH's and RSNA's images: own epochs and sizes of the cache, and no image prepared for nothing."""

import pandas as pd
import pytest

from siimcovid.core.overrides import override
from siimcovid.core.presets import DEMO, load_preset
from siimcovid.core.stage_names import DETECTORS
from siimcovid.training import pretraining

OWN = {"nih_cache_size": 448, "rsna_cache_size": 704} | {f"{s}.rsna_epochs": 3 + n for n, s in enumerate(DETECTORS)}


@pytest.mark.parametrize("stage", DETECTORS)
def test_every_detector_has_epochs_of_its_own_on_rsna(stage):
    preset = load_preset("demo", OWN)
    changed = override(preset, pretraining.changes(preset, stage, "rsna"))
    assert getattr(changed, stage).training.epochs == OWN[f"{stage}.rsna_epochs"]
    assert changed.cache_size == 704
    others = [other for other in DETECTORS if other != stage]
    assert [getattr(changed, o) for o in others] == [getattr(preset, o) for o in others]
    assert pretraining.changes(preset, stage, "competition") == {}


def test_the_caches_have_sizes_of_their_own():
    assert pretraining.changes(load_preset("demo", OWN), "backbone", "nih") == {"cache_size": 448}
    assert pretraining.changes(DEMO, "backbone", "nih") == {}  # the preset's cache_size
    assert "cache_size" not in pretraining.changes(DEMO, "rcnn", "rsna")


def test_rsnas_images_without_boxes_are_prepared_only_to_choose_an_epoch_by():
    images = pd.DataFrame({"image_id": list("abc"), "annotated": [True, False, True]})
    for kind, validate, wanted in (
        ("rsna", False, "ac"),
        ("rsna", True, "abc"),
        ("competition", False, "abc"),
        ("nih", False, "abc"),
    ):
        training = load_preset("demo", {"rcnn.training.validate": validate}).rcnn.training
        assert "".join(pretraining.wanted_images(images, training, kind)["image_id"]) == wanted
