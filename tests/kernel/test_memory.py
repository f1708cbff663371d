"""Memory does not grow with the number of images."""

import pytest

from support import peak_memory

pytestmark = pytest.mark.slow


def test_ten_times_the_images_take_the_same_memory():
    few, many = peak_memory.peaks([20, 200], scale=0.05, side=256).values()
    assert many[0] == pytest.approx(few[0], rel=0.1)
    assert many[1] == pytest.approx(few[1], rel=0.1)
