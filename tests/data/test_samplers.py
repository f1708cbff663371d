"""The order of an epoch: every image once, or as often as its weight says; the same for the same seed and epoch."""

import pytest

from siimcovid.data.samplers import EpochSampler


def test_sampler_covers_each_epoch_once():
    sampler = EpochSampler(5, seed=0)
    first = list(sampler)
    sampler.epoch = 2
    third = list(sampler)
    assert sorted(first) == [0, 1, 2, 3, 4]
    assert sorted(third) == [10, 11, 12, 13, 14]
    assert [t - 10 for t in third] != first
    assert list(EpochSampler(5, seed=0)) == first


def test_sampler_draws_by_sampling_weights():
    sampler = EpochSampler(2000, seed=0, sampling_weights=[3.0] * 1000 + [1.0] * 1000)
    rare = sum(ticket < 1000 for ticket in sampler)
    assert rare == pytest.approx(1500, abs=60)  # three standard deviations
