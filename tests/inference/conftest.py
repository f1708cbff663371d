"""Fixtures of the tests of inference."""

import pytest

from siimcovid.inference.model_outputs import ModelOutputs
from support.three_image_predictions import three_images


@pytest.fixture
def outputs() -> ModelOutputs:
    """Two detectors' and a study model's outputs for three images."""
    return three_images()
