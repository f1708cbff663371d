"""The batch of a step, shared among processes."""

import pytest

from siimcovid.data.samplers import EpochSampler
from siimcovid.training.step_batches import StepBatches


def shares(count: int, batch: int, processes: int) -> list[StepBatches]:
    return [StepBatches(EpochSampler(count, 0), batch, process, processes) for process in range(processes)]


@pytest.mark.parametrize(
    ("count", "batch", "processes", "sizes"),
    [
        (31, 15, 1, [[15, 15]]),
        (31, 15, 2, [[8, 8], [7, 7]]),
        (31, 16, 4, [[4], [4], [4], [4]]),
        (6, 2, 4, [[1], [1], [1], [1]]),  # every process has an image
        (5, 8, 2, [[3], [2]]),  # fewer images than a batch: one step
    ],
)
def test_all_processes_together_have_the_batch_of_one(count, batch, processes, sizes):
    all_shares = shares(count, batch, processes)
    assert [[len(images) for images in share] for share in all_shares] == sizes
    if batch >= processes:
        (alone,) = shares(count, batch, 1)
        for whole, *parts in zip(alone, *all_shares, strict=True):
            assert [image for part in parts for image in part] == whole


@pytest.mark.parametrize(("count", "batch"), [(31, 15), (5, 8), (40, 8)])
def test_the_mean_of_the_processes_is_that_of_the_images(count, batch):
    """A process's loss is the mean over its images, and the gradient the mean over the processes."""
    all_shares = shares(count, batch, 2)
    (alone,) = shares(count, batch, 1)
    for whole, *parts in zip(alone, *all_shares, strict=True):
        means = [sum(part) / len(part) * share.weight(len(part)) for share, part in zip(all_shares, parts, strict=True)]
        assert sum(means) / 2 == pytest.approx(sum(whole) / len(whole))


def test_one_process_is_not_weighed():
    (alone,) = shares(31, 15, 1)
    assert alone.weight(15) == 1
    (few,) = shares(5, 8, 1)
    assert few.weight(5) == 1


def test_goes_on_within_an_epoch():
    (alone,) = shares(31, 10, 1)
    whole = list(alone)
    alone.first = 1
    assert list(alone) == whole[1:]
    assert len(alone) == 3


def test_fewer_images_than_processes():
    assert [list(share) for share in shares(1, 4, 2)] == [[[0]], [[0]]]
