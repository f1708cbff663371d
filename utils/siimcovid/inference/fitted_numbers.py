"""The numbers that fit_ensemble.py fitted, as ensemble.json in a weights folder and its manifest."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from siimcovid.core.configuration import Preset
from siimcovid.core.errors import InputError
from siimcovid.core.files import write_json
from siimcovid.models import weights_manifest

#: The file's name; it holds overrides of the preset.
FILE = "ensemble.json"


def write(folder: Path, overrides: Mapping[str, Any], preset: Preset, data: str) -> Path:
    """Write the fitted numbers into a weights folder and enter them into its manifest."""
    path = Path(folder) / FILE
    write_json(path, dict(overrides))
    weights_manifest.register(
        path,
        stage="combination",
        architecture=", ".join(preset.fusion.detectors),
        source=f"fitted by siimcovid on out-of-fold predictions of {data}",
        licence="GPL-3.0",
        preset=preset.name,
    )
    return path


def read(folder: Path) -> dict[str, Any]:
    """The fitted numbers of a weights folder, {} where it has none. Raises InputError where they are damaged."""
    if FILE not in weights_manifest.read_manifest(folder):
        return {}
    try:
        numbers = json.loads(weights_manifest.verified(folder, FILE).read_text(encoding="utf-8"))
        if not all(key.startswith(("fusion.", "late_fusion.")) for key in numbers):
            raise ValueError("it sets other than fusion and late_fusion")
    except (ValueError, AttributeError) as error:
        raise InputError(f"{folder}/{FILE} is damaged ({error}); fit it again with `siimcovid fit-ensemble`") from None
    return numbers
