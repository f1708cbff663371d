"""The weights dataset: a weights folder, copied after every file was held against its manifest.

Beside each trained stage lies its configuration as JSON, which goes with it. What the manifest does not list stays.
"""

import json
import shutil
from pathlib import Path

from siimcovid.core.errors import InputError
from siimcovid.core.stage_names import SUBMISSION_STAGES
from siimcovid.models.weights_manifest import MANIFEST, read_manifest, verified


def verify(folder: Path) -> list[Path]:
    """The files of a weights folder that go to Kaggle: the manifest and what it vouches for.

    Raises InputError for an empty manifest, a file that is missing or damaged, or one in a subfolder.
    """
    if not folder.is_dir():
        raise InputError(f"no folder {folder}: name a weights folder, such as the weights/ of a run, with WEIGHTS=")
    manifest = read_manifest(folder)
    if not manifest:
        raise InputError(f"{folder / MANIFEST} lists no files; name another folder with WEIGHTS=")
    files = [folder / MANIFEST]
    for name in manifest:
        if Path(name).name != name:
            raise InputError(f"{folder / MANIFEST} lists {name!r}: files must lie in the folder itself")
        path = verified(folder, name)
        files += [path, *(facts for facts in [path.with_suffix(".json")] if facts.is_file())]
    return files


def write_weights(folder: Path, target: Path) -> int:
    """Verify `folder` and copy its files into `target`; returns their number."""
    files = verify(folder)
    for path in files:
        shutil.copyfile(path, target / path.name)
    verify(target)
    return len(files)


def kernel_parameters(folder: Path) -> dict[str, str]:
    """PRESET and MODE of a kernel with these weights: inference where all three models are there, else fine-tuning."""
    entries = read_manifest(folder).values()
    trained = {entry.get("stage") for entry in entries} >= set(SUBMISSION_STAGES)
    # a trained run's weights may lie beside the pretrained ones that they started from
    counted = [entry for entry in entries if not trained or entry.get("stage") in SUBMISSION_STAGES]
    presets = sorted({entry["preset"] for entry in counted if entry.get("preset")})
    if len(presets) > 1:
        raise InputError(f"{folder / MANIFEST} mixes the presets {json.dumps(presets)}: bundle the weights of one")
    return {**({"PRESET": presets[0]} if presets else {}), "MODE": "infer" if trained else "finetune"}
