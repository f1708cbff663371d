"""Unlike the training images: the distance to the nearest of them, and a limit that others of their kind pass."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from siimcovid.models.out_of_distribution import (
    BANDS,
    MARGIN,
    NEAREST,
    UnlikeTraining,
    bands,
    describe,
    mirrored_columns,
)

CHANNELS = [2, 2, 2, 3, 8]


def model_of(count: int) -> UnlikeTraining:
    return UnlikeTraining(CHANNELS, count)


def maps_of(count: int, seed: int, shift: float = 0.0, side: int = 8) -> list[torch.Tensor]:
    """Maps of images of one kind: the same pattern with a little noise; `shift` makes another kind."""
    pattern, noise = torch.Generator().manual_seed(99), torch.Generator().manual_seed(seed)
    maps = []
    for stage, channels in enumerate(CHANNELS):
        size = max(1, side * 8 >> stage)
        own = torch.rand((1, channels, size, size), generator=pattern) + shift * torch.arange(channels)[:, None, None]
        maps.append(own + 0.2 * torch.rand((count, channels, size, size), generator=noise))
    return maps


def test_the_distance_is_the_mean_cosine_distance_to_the_nearest():
    rng = torch.Generator().manual_seed(0)
    model = model_of(30)
    known, others = (
        functional.normalize(torch.randn((n, model.references.shape[1]), generator=rng), dim=1) for n in (30, 4)
    )
    model.fit(known)
    cosines = functional.cosine_similarity(others[:, None], known[None], dim=2).numpy()
    wanted = 1 - np.sort(cosines, axis=1)[:, -NEAREST:].mean(axis=1)
    assert model.distance(others).numpy() == pytest.approx(wanted, abs=1e-3)  # references in half precision


def test_an_images_own_reference_does_not_set_the_limit():
    """Images that are far from each other: each is at distance 1 from all others, and at .9 with itself among them."""
    model = model_of(25)
    known = torch.eye(model.references.shape[1])[:25]
    model.fit(known)
    assert model.limit.exp().item() == pytest.approx(MARGIN)
    assert model.distance(known).numpy() == pytest.approx(1 - 1 / NEAREST, abs=1e-6)


def test_what_is_of_the_same_kind_passes_and_what_is_not_does_not():
    model = model_of(400)
    model.fit(describe(maps_of(400, 0)))
    assert (model(maps_of(300, 1)) > 0).float().mean() < 0.05
    assert (model(maps_of(50, 1, shift=0.4)) > 0).all()
    upside_down = [one.flip(2) for one in maps_of(50, 1)]
    assert (model(upside_down) > 0).all()
    assert (model([torch.zeros_like(one) for one in upside_down]) > 0).all()


def test_an_image_and_its_mirror_image_agree():
    maps = maps_of(3, 0, side=7)
    torch.testing.assert_close(describe([one.flip(3) for one in maps]), describe(maps))


def test_a_description_has_length_1_half_of_it_from_each_part():
    described = describe(maps_of(3, 0))
    assert described.shape == (3, model_of(1).references.shape[1])
    parts = described[:, : CHANNELS[-1]], described[:, CHANNELS[-1] :]
    assert all(part.square().sum(dim=1).numpy() == pytest.approx(0.5) for part in parts)
    halves = [one.half() for one in maps_of(3, 0)]  # as on a GPU
    torch.testing.assert_close(describe(halves), described, atol=2e-3, rtol=0)


@pytest.mark.parametrize("side", [1, 2, 3, 7, 16])
def test_bands_are_those_of_adaptive_pooling(side):
    column = torch.rand((1, 1, side), generator=torch.Generator().manual_seed(0))
    wanted = functional.adaptive_avg_pool1d(column, BANDS)[0, 0]
    torch.testing.assert_close(bands(side) @ column[0, 0], wanted)
    left, middle, right = wanted
    torch.testing.assert_close(mirrored_columns(side) @ column[0, 0], torch.stack([middle, (left + right) / 2]))


def test_before_it_is_fitted_nothing_is_unlike():
    assert (model_of(8)(maps_of(5, 0)) < 0).all()


@pytest.mark.parametrize("count", [2, 3, 7])
def test_a_handful_of_images_is_enough(count):
    model = model_of(12)
    model.fit(describe(maps_of(count, 0)))
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())
    assert model(maps_of(4, 1)).isfinite().all()


def test_images_that_are_all_the_same_do_not_take_the_logarithm_of_nothing():
    model = model_of(40)
    same = [one.expand(40, *one.shape[1:]) for one in maps_of(1, 0)]
    model.fit(describe(same))
    assert model(same).isfinite().all()
    assert (model(maps_of(3, 0, shift=0.4)) > 0).all()
