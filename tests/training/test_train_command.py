"""`siimcovid train STAGE` on synthetic images: every stage, the chain from one to the next, and what is said about
it."""

import json
import os

import pandas as pd
import pytest

from siimcovid.apps import command_line
from siimcovid.core import paths
from siimcovid.models import checkpoints, weights_manifest
from siimcovid.synthetic.demo_competition import write_competition
from siimcovid.synthetic.pretraining_sets import write_pretraining

pytestmark = pytest.mark.slow

SIDE = 64
#: stage -> the data it is trained on here, and what its weights come from.
CHAIN = [
    ("backbone", "nih", None),
    ("yolo", "rsna", "backbone.safetensors"),
    ("rcnn", "competition", "backbone.safetensors"),
    ("retinanet", "competition", "backbone.safetensors"),
    ("study", "competition", "backbone.safetensors"),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    base = tmp_path_factory.mktemp("chain")
    write_competition(base / "competition", train_studies=12, test_studies=1, seed=0, scale=0.05, workers=1)
    for layout in ("rsna", "nih"):
        write_pretraining(base / layout, layout, count=12, seed=0, scale=0.05, workers=1)
    return base


def settings(stage: str) -> list[str]:
    changes = {"training.epochs": 2, "size": SIDE, "infer_size": SIDE, "training.batch": 2}
    texts = [f"--set={stage}.{key}={value}" for key, value in changes.items()]
    return [*texts, f"--set=cache_size={SIDE}", "--set=folds=2"]


def train(stage: str, *arguments: object) -> int:
    return command_line.main(["train", stage, "--preset", "demo", *map(str, arguments), *settings(stage)])


def test_the_chain(folders, capsys):
    """Each stage starts from the one before it, keeps its best epoch on a fold held back, and writes all it should."""
    out = folders / "out"
    for stage, data, start in CHAIN:
        given = ["--weights", out] if start else []
        assert train(stage, "--data", folders / data, "--out", out, "--fold", 0, *given) == 0
        said = capsys.readouterr().out
        assert f"started from {start}: " in said if start else "started from random weights" in said
        assert weights_manifest.verified(out, f"{stage}.safetensors").name == f"{stage}.safetensors"
        assert checkpoints.load(out / f"{stage}.safetensors")[0] == stage
        facts = json.loads((out / f"{stage}.json").read_text())
        assert facts["start"]["file"] == start
        table = pd.read_csv(out / f"{stage}.metrics.csv")
        assert len(table) == 2
        assert table["metric"].notna().all()
        assert os.listdir(out / "tensorboard" / stage)
    assert (out / "learning_curves.png").stat().st_size > 1000


@pytest.mark.parametrize(("stage", "epochs"), [("yolo", 9), ("rcnn", 7)])
def test_a_detector_goes_on_from_rsna_to_the_competition(folders, capsys, stage, epochs):
    """The epochs on RSNA and its cache's size are the preset's own, unless --set says otherwise."""
    first, second = folders / f"rsna-{stage}", folders / f"{stage}-then"
    arguments = ["train", stage, "--preset", "demo", "--data", str(folders / "rsna"), "--out", str(first)]
    sides = [f"--set={stage}.{key}={SIDE}" for key in ("size", "infer_size")]
    command_line.main([*arguments, *sides, f"--set=rsna_cache_size={SIDE}", f"--set=cache_size={SIDE}", "--hours", "0"])
    facts = json.loads((first / f"{stage}.json").read_text())
    assert facts["config"]["training"]["epochs"] == facts["config"]["rsna_epochs"] == epochs
    assert facts["identity"]["cache"]["size"] == SIDE
    assert len(pd.read_csv(first / f"{stage}.metrics.csv")) == 1  # there were no hours for more
    prepared = pd.read_csv(first / "cache" / "prepared.csv")
    boxed = pd.read_csv(folders / "rsna" / "stage_2_train_labels.csv").query("Target == 1")["patientId"]
    assert set(prepared["image_id"]) == set(boxed)
    capsys.readouterr()
    train(stage, "--data", folders / "competition", "--weights", first, "--out", second)
    assert f"started from {stage}.safetensors" in capsys.readouterr().out


def test_a_killed_runs_command_is_given_again(folders, capsys):
    """A finished stage is not trained twice."""
    out = folders / "again"
    for _ in range(2):
        train("study", "--data", folders / "competition", "--out", out)
    stamp = (out / "study.safetensors").stat().st_mtime_ns
    train("study", "--data", folders / "competition", "--out", out)
    assert (out / "study.safetensors").stat().st_mtime_ns == stamp


def test_on_kaggle_prepared_images_are_no_part_of_the_output(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "KAGGLE_WORKING", tmp_path / "working")
    monkeypatch.setattr(paths, "KAGGLE_TEMP", tmp_path / "temp")
    out = tmp_path / "working" / "study"
    assert train("study", "--data", folders / "competition", "--out", out, "--hours", 0) == 0
    assert (tmp_path / "temp" / "cache" / "prepared.csv").is_file()
    assert (out / "study.safetensors").is_file()
    assert not list(out.rglob("*cache*"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["backbone", "--data", "competition"], "stage backbone is trained on"),
        (["study", "--data", "competition", "--set", "study.training.epoch=3"], "did you mean"),
        (["study", "--data", "competition", "--set", "epochs"], "--set takes KEY=VALUE"),
        (["study", "--data", "competition", "--preset", "tiny"], "full or small"),
        (["rcnn", "--data", "competition", "--weights", "nowhere"], "manifest.json"),
        (["rcnn", "--data", "competition", "--set", "rcnn.training.balance=weights"], "weights need stage study"),
        (["rcnn", "--data", "rsna", "--set", "rcnn.training.balance=oversample"], "images with study labels"),
    ],
)
def test_refuses(folders, arguments, said, capsys, monkeypatch):
    monkeypatch.chdir(folders)
    sizes = ["--set", f"cache_size={SIDE}"]
    preset = [] if "--preset" in arguments else ["--preset", "demo"]
    assert command_line.main(["train", *arguments, "--out", "refused", *preset, *sizes]) == 2
    assert said in capsys.readouterr().err
