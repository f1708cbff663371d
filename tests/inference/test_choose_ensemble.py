"""The ensemble is not worse than its best detector: on model outputs of which it is known how good they are."""

import pytest

from siimcovid.core.overrides import override
from siimcovid.core.presets import load_preset
from siimcovid.data.folds import assign_folds
from siimcovid.evaluation.prediction_scores import class_scores
from siimcovid.inference import choose_ensemble, fit_ensemble
from siimcovid.inference.choose_ensemble import FITTED, PRESET, choose
from siimcovid.inference.ensemble import combine
from support.fabricated_outputs import GOOD, USELESS, FabricatedDetector, fabricate

PLAIN = load_preset("demo", fit_ensemble.NOTHING)
LEFT, RIGHT = FabricatedDetector(blind="right"), FabricatedDetector(blind="left", shift=0.5)


def chosen_of(outputs, images, preset=PLAIN):
    parts = dict(zip(images["image_id"], assign_folds(images, fit_ensemble.PARTS), strict=True))
    return choose(outputs, images, parts, preset)


def on_fresh_images(detectors, overrides, images=200, seed=100):
    """The scores of an ensemble on images that nothing was fitted on."""
    outputs, truth = fabricate(detectors, images, seed)
    return class_scores(combine(outputs, override(PLAIN, overrides)), truth)


def alone(detectors, name):
    return on_fresh_images(detectors, {"fusion.weights": [float(name == other) for other in PLAIN.fusion.detectors]})


@pytest.mark.parametrize("useless", ["rcnn", "yolo"])
def test_a_useless_detector_is_left_out_or_does_no_harm(useless):
    detectors = {name: USELESS if name == useless else GOOD for name in PLAIN.fusion.detectors}
    chosen = chosen_of(*fabricate(detectors, 150))
    best = next(name for name in detectors if name != useless)
    scores = chosen.choices["opacity"]
    assert scores[chosen.choice] >= scores[f"{best} alone"] > scores[f"{useless} alone"] + 0.2
    assert scores[PRESET] < scores[f"{best} alone"] - 0.05  # what the plain ensemble loses
    weights = dict(zip(detectors, chosen.overrides["fusion.weights"], strict=True))
    assert weights[useless] <= 0.25 * weights[best]
    fresh = on_fresh_images(detectors, chosen.overrides)["opacity"]
    assert fresh > alone(detectors, best)["opacity"] - 0.01


def test_two_that_complete_each_other_are_both_used():
    detectors = {"rcnn": LEFT, "yolo": RIGHT}
    chosen = chosen_of(*fabricate(detectors, 150))
    assert chosen.choice == FITTED
    assert min(override(PLAIN, chosen.overrides).fusion.weights) > 0
    fresh = on_fresh_images(detectors, chosen.overrides)["opacity"]
    assert fresh > max(alone(detectors, name)["opacity"] for name in detectors) + 0.1


def test_few_images_leave_the_presets_numbers():
    outputs, images = fabricate({"rcnn": GOOD, "yolo": GOOD}, 60)
    chosen = choose(outputs, images, {}, PLAIN)
    assert (chosen.choice, chosen.overrides, chosen.items) == (PRESET, {}, None)
    assert "preset demo. Mean" in chosen.sentence(PLAIN)
    assert "too few images to fit numbers on" in chosen.sentence(PLAIN)


def test_even_few_images_leave_out_who_surely_hurts():
    outputs, images = fabricate({"rcnn": USELESS, "yolo": GOOD}, 60)
    chosen = choose(outputs, images, {}, PLAIN)
    assert (chosen.choice, chosen.overrides) == ("yolo alone", {"fusion.weights": [0.0, 1.0]})
    assert "yolo alone (rcnn left out of the fusion)" in chosen.sentence(PLAIN)
    blank = images.assign(boxes=[[] for _ in range(len(images))])
    assert choose(outputs, blank, {}, PLAIN).choice == PRESET  # no true box, no difference
    boxed = images.index[images["boxes"].map(len) > 0]
    for count, choice in ((20, "yolo alone"), (19, PRESET)):  # a handful prove nothing
        few = images.loc[boxed[:count]]
        assert choose(outputs.of_images(set(few["image_id"])), few, {}, PLAIN).choice == choice


def test_who_is_left_out_may_still_say_that_there_is_none():
    """The boxes are one detector's; `none` hears the other, which finds other opacities."""
    chosen = chosen_of(*fabricate({"rcnn": LEFT, "yolo": RIGHT}, 150))
    outputs, images = fabricate({"rcnn": LEFT, "yolo": RIGHT}, 150)
    boxes = override(PLAIN, {"fusion.weights": [1.0, 0.0]})
    lone = class_scores(combine(outputs, boxes), images)
    assert chosen.choices.loc["rcnn alone", "none"] > lone["none"] + 0.05
    assert chosen.choices.loc["rcnn alone", "opacity"] == pytest.approx(lone["opacity"], abs=0.03)


def test_a_bootstrap_counts_the_draws():
    outputs, images = fabricate({"rcnn": GOOD, "yolo": USELESS}, 60)
    good, useless = (outputs.detections[outputs.detections["model"] == name] for name in ("rcnn", "yolo"))
    assert choose_ensemble.share_of_draws_better(useless, good, images, 0) == 1
    assert choose_ensemble.share_of_draws_better(good, useless, images, 0) == 0
    assert choose_ensemble.share_of_draws_better(good, good, images, 0) == 0.5
