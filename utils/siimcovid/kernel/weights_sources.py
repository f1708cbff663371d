"""Which of several weights folders each model comes from, and what each stage's training starts from.

In: the weights folders that were found: datasets, and `weights/` of earlier runs' outputs. Out: a folder for each file,
and a line for each that says so. A file is verified against the manifest of its own folder.

The order is: the folder that was named (WEIGHTS_DIR), the outputs of earlier sessions from the latest to the first,
other runs' outputs, datasets. The first folder that has a model gives it; but where that training was not finished, a
finished one of the same identity goes before it.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from siimcovid.core.errors import InputError
from siimcovid.core.stage_names import DETECTORS, stage_of
from siimcovid.kernel.run_record import RECORD
from siimcovid.models import initial_weights, weights_manifest

#: What a run calls the folder of its trained models; RECORD lies beside it.
OUTPUT_NAME = "weights"


def is_output(folder: Path) -> bool:
    """Whether a weights folder is where a run of the kernel left its trained models."""
    return folder.name == OUTPUT_NAME and (folder.parent / RECORD).is_file()


def session_number(folder: Path) -> int:
    """The number at the end of a kernel's name, the folder's or that of one around it ("siim-covid19-2"); else 0."""
    for name in (folder.name, *(parent.name for parent in folder.parents)):
        if found := re.search(r"-(\d+)$", name):
            return int(found[1])
    return 0


def in_order(folders: Iterable[Path], explicit: Path | None) -> list[Path]:
    """The folders in the order in which they are asked for a file, see the module's docstring."""

    def place(folder: Path) -> tuple[bool, bool, int, str]:
        return folder != explicit, not is_output(folder), -session_number(folder), str(folder)

    return sorted(folders, key=place)


def facts_of(checkpoint: Path) -> Mapping[str, Any]:
    """What lies as JSON beside a checkpoint ("identity", "finished", "epochs" …); {} where there is nothing to read."""
    try:
        facts = json.loads(checkpoint.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}


def is_unfinished(checkpoint: Path) -> bool:
    """Whether a checkpoint's training paused; one without a word about it is taken for finished."""
    return facts_of(checkpoint).get("finished") is False


def model_folders(folders: list[Path], report: Callable[[InputError], None]) -> dict[str, Path]:
    """Model -> the folder of its checkpoint, of those that the folders' manifests list.

    report: is told of a file that is passed over since it is missing or damaged. The last folder's file is taken as it
    is: where it is damaged too, the step that reads it says so.
    """
    manifests = {folder: weights_manifest.read_manifest(folder) for folder in folders}
    names = [file.removesuffix(".safetensors") for manifest in manifests.values() for file in manifest]
    models = [name for name in dict.fromkeys(names) if stage_of(name) in (*DETECTORS, "study")]
    chosen = {}
    for name in models:
        having = [folder for folder in folders if f"{name}.safetensors" in manifests[folder]]
        while len(having) > 1:
            try:
                weights_manifest.verified(having[0], f"{name}.safetensors")
                break
            except InputError as error:
                report(error)
                having.pop(0)
        chosen[name] = _finished(having, f"{name}.safetensors")
    return chosen


def _finished(folders: list[Path], file: str) -> Path:
    """The first folder, or the first whose checkpoint is the finished one of the same training."""
    first = folders[0]
    if not is_unfinished(first / file):
        return first
    identity = facts_of(first / file).get("identity")
    for folder in folders[1:]:
        facts = facts_of(folder / file)
        if facts.get("finished") is True and facts.get("identity") == identity:
            return folder
    return first


def start_folder(folders: list[Path], stage: str, config: Any) -> Path | None:
    """The folder whose file a stage's training starts from: the first one with the best file.

    Best is the stage as it was trained before, then a backbone that stage `backbone` trained, then published weights.
    Where none has any it is the first folder, of which the training says what is missing; None without a folder.
    """
    ranks = {f"{stage}.safetensors": 0, "backbone.safetensors": 1}
    best = None
    for number, folder in enumerate(folders):
        try:
            path, _ = initial_weights.start_file(stage, config, folder)
        except InputError:
            continue
        place = ranks.get(path.name, 2), number
        best = place if best is None else min(best, place)
    return folders[best[1] if best else 0] if folders else None


def model_lines(chosen: Mapping[str, Path]) -> list[str]:
    """A line for each model: which folder its file comes from, and whether its training is unfinished."""
    lines = []
    for name, folder in sorted(chosen.items()):
        state = " (its training is unfinished)" if is_unfinished(folder / f"{name}.safetensors") else ""
        lines.append(f"{name}.safetensors comes from {folder}{state}")
    return lines


def start_lines(folders: list[Path], stages: Mapping[str, Any]) -> list[str]:
    """A line for each stage (stage -> configuration): which file of which folder its training starts from."""
    lines = []
    for stage, config in stages.items():
        folder = start_folder(folders, stage, config)
        if folder is not None:
            try:
                path, _ = initial_weights.start_file(stage, config, folder)
            except InputError:
                continue
            where = f"{path.name} of {folder}"
            if getattr(config, "study_backbone", False) and path.name != f"{stage}.safetensors":
                where = f"the study model's backbone, or where that is not trained {where}"
            lines.append(f"{stage} starts from {where}")
    return lines
