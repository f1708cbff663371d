"""Unlike the training images: the distance is Mahalanobis's, and its limit lets through images of the same kind."""

import numpy as np
import pytest
import torch
from sklearn.covariance import LedoitWolf

from siimcovid.models.unlike_training import DIRECTIONS, UnlikeTraining


def drawn(count: int, channels: int, seed: int) -> np.ndarray:
    """Features of a few strong directions and weak noise, around a mean, as pooled features are."""
    ways = np.random.default_rng(99).normal(size=(5, channels))
    rng = np.random.default_rng(seed)
    return (3 + rng.normal(size=(count, 5)) @ ways + 0.3 * rng.normal(size=(count, channels))).astype(np.float32)


@pytest.mark.parametrize("channels", [4, 40])
def test_the_distance_is_by_the_shrunk_covariance(channels):
    """All directions have a width of their own here."""
    features, model = drawn(200, channels, 0), UnlikeTraining(channels)
    model.fit(features)
    shrunk = LedoitWolf().fit(features.astype(float))
    others = drawn(20, channels, 1)
    found = model.squared_distance(torch.from_numpy(others)).numpy()
    assert found == pytest.approx(shrunk.mahalanobis(others.astype(float)), rel=1e-3)


def test_what_is_of_the_same_kind_passes_and_what_is_not_does_not():
    """Fewer images than features, as in small training sets."""
    channels = 2 * DIRECTIONS
    model = UnlikeTraining(channels)
    model.fit(drawn(100, channels, 0))
    same = torch.from_numpy(drawn(500, channels, 1))
    other_way = same + 4 * torch.from_numpy(np.random.default_rng(5).normal(size=channels).astype(np.float32))
    assert (model(same) > 0).float().mean() < 0.05
    assert (model(other_way) > 0).all()
    assert (model(torch.zeros(1, channels)) > 0).all()  # what a network says of black, as a rule


def test_before_it_is_fitted_nothing_is_unlike():
    model = UnlikeTraining(8)
    assert (model(1000 * torch.randn(5, 8)) < 0).all()
    assert model(torch.zeros(1, 8)).isfinite().all()


@pytest.mark.parametrize("count", [2, 3, 7])
def test_a_handful_of_images_is_enough(count):
    model = UnlikeTraining(16)
    model.fit(drawn(count, 16, 0))
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())
    assert model(torch.from_numpy(drawn(4, 16, 1))).isfinite().all()


def test_features_that_are_all_the_same_do_not_divide_by_nothing():
    model = UnlikeTraining(4)
    model.fit(np.ones((10, 4), np.float32))
    assert model(torch.tensor([[1.0, 1, 1, 1], [1, 1, 1, 2]])).isfinite().all()
