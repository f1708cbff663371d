"""What a rehearsal is given: a competition whose test folder was replaced, small weights, Kaggle's mounts.

In:  the built bundles. Out: for each of Kaggle's layouts, which folder lies where below /kaggle/input.
"""

import csv
import shutil
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from siimcovid.core import stage_names
from siimcovid.core.configuration import STAGES
from siimcovid.core.paths import COMPETITION_SLUG
from siimcovid.kaggle import CODE_ARCHIVE, SLUGS

SAMPLE = "sample_submission.csv"

#: Side in pixels of the images that the small random models take.
TINY_SIDE = 96


@dataclass(frozen=True)
class Layout:
    """One way in which Kaggle mounts inputs and unpacks the code archive."""

    name: str
    competition: str  # below /kaggle/input
    dataset: str  # the same, with {owner} and {slug}
    code: str  # "folder": unpacked into a folder of the archive's name; "root": into the dataset's; "packed": not


LAYOUTS = (
    Layout("/kaggle/input/<slug>", COMPETITION_SLUG, "{slug}", "root"),
    Layout(
        "/kaggle/input/competitions and datasets",
        f"competitions/{COMPETITION_SLUG}",
        "datasets/{owner}/{slug}",
        "folder",
    ),
    Layout("/kaggle/input/competitions and <slug>", f"competitions/{COMPETITION_SLUG}", "{slug}", "packed"),
)


def input_folders(layout: Layout, bundles: Path, competition: Path, owner: str, scratch: Path) -> dict[str, Path]:
    """Place below /kaggle/input -> the folder that is mounted there."""
    places = {layout.competition: competition}
    for bundle, slug in SLUGS.items():
        folder = bundles / bundle
        if bundle == "code" and layout.code != "packed":
            folder = unpacked(folder / CODE_ARCHIVE, scratch / f"code-{layout.code}", layout.code)
        places[layout.dataset.format(owner=owner, slug=slug)] = folder
    return places


def unpacked(archive: Path, target: Path, kind: str) -> Path:
    """The code dataset after Kaggle has unpacked its archive."""
    with zipfile.ZipFile(archive) as stream:
        stream.extractall(target / archive.stem if kind == "folder" else target)
    return target


def write_hidden_competition(folder: Path, test_studies: int) -> Path:
    """A synthetic competition as the rerun sees it: the visible test folder and sample are gone, others in their place.

    Returns the sample submission of the visible test, which must not be what is answered.
    """
    from siimcovid.synthetic.demo_competition import write_competition

    rerun = folder.with_name(f"{folder.name}-rerun")
    write_competition(folder, train_studies=6, test_studies=3, seed=1, scale=0.1, workers=1)
    write_competition(rerun, train_studies=1, test_studies=test_studies, seed=2, scale=0.1, workers=1)
    visible = folder.with_name(f"{folder.name}-{SAMPLE}")
    shutil.move(folder / SAMPLE, visible)
    shutil.rmtree(folder / "test")
    shutil.move(rerun / "test", folder / "test")
    shutil.move(rerun / SAMPLE, folder / SAMPLE)
    return visible


def sample_ids(sample: Path) -> set[str]:
    """The ids of a sample submission."""
    with sample.open(newline="", encoding="utf-8") as stream:
        return {row[0] for row in csv.reader(stream)} - {"id"}


def tiny_overrides(side: int) -> dict[str, int]:
    """Settings of the preset `small` with which every stage trains for one epoch on images of `side` pixels."""
    sizes = {f"{stage}.{key}": side for stage in STAGES for key in ("size", "infer_size")}
    return {**sizes, **{f"{stage}.training.epochs": 1 for stage in stage_names.SUBMISSION_STAGES}}


def write_tiny_weights(
    folder: Path, side: int = TINY_SIDE, stages: Sequence[str] = stage_names.SUBMISSION_STAGES
) -> Path:
    """Random weights of the preset `small` for images of `side` pixels, in a weights folder with its manifest."""
    import torch

    from siimcovid.core.presets import load_preset
    from siimcovid.models import checkpoints, weights_manifest

    preset = load_preset("demo", tiny_overrides(side))
    for stage in stages:
        torch.manual_seed(0)
        config = getattr(preset, stage)
        path = folder / f"{stage}.safetensors"
        checkpoints.save(path, checkpoints.build_model(stage, config), stage, config)
        weights_manifest.register_trained(path, stage, preset, "nothing")
    return folder
