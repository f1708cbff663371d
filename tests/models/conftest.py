"""Fixtures of the tests of models."""

from pathlib import Path

import pytest

from siimcovid.models import published_weights


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory) -> Path:
    """A weights folder with the real ImageNet weights of the small preset."""
    folder = tmp_path_factory.mktemp("imagenet")
    published_weights.import_weights("efficientnet_lite0", None, folder)
    return folder
