"""Fixtures that several test files share."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real() -> Path:
    """The folder of real radiographs, labels and DICOM files that may lie beside the repository."""
    folder = Path(__file__).parents[2] / "shared" / "real"
    if not folder.is_dir():
        pytest.skip(f"no real material at {folder.name}/ beside the repository")
    return folder
