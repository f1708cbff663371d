"""The whole kernel: the notebook through papermill on a tiny synthetic competition, fine-tuned and then inferred."""

import json
import shutil
from pathlib import Path

import pandas as pd
import papermill
import pytest

from siimcovid.core import paths
from siimcovid.core.errors import InputError
from siimcovid.core.labels import CLASSES
from siimcovid.evaluation import submission_validator
from siimcovid.kernel import steps
from siimcovid.models import published_weights, weights_manifest
from siimcovid.synthetic.demo_competition import write_competition
from support.kernel_cells import NOTEBOOK

pytestmark = pytest.mark.slow

#: The small preset, smaller: seconds instead of minutes, for the path and not for the score.
TINY = {
    "cache_size": 96,
    "rcnn.training.epochs": 1,
    "rcnn.size": 96,
    "rcnn.infer_size": 96,
    "yolo.training.epochs": 1,
    "yolo.size": 96,
    "yolo.infer_size": 96,
    "study.training.epochs": 2,
    "study.size": 96,
    "study.infer_size": 96,
}


HEADINGS = ["Configuration", "Data", "Plan", "Preparation", "Training", "Detection", "Study classification"]
HEADINGS += ["Submission", "Score", "Time"]


def execute(folder: Path, **parameters) -> dict:
    """Run the notebook; returns it with its outputs."""
    return papermill.execute_notebook(
        NOTEBOOK,
        folder / "out.ipynb",
        {"PRESET": "demo", "OUTPUT_DIR": str(folder), "OVERRIDES": TINY, **parameters},
        kernel_name="python3",
        progress_bar=False,
        cwd=folder,
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """A competition, the folder of a fine-tuning run on it, and that of an inference run with its weights."""
    top = tmp_path_factory.mktemp("kernel")
    folders = {name: top / name for name in ("competition", "imagenet", "finetune", "infer")}
    write_competition(folders["competition"], train_studies=20, test_studies=8, seed=3, scale=0.1)
    published_weights.import_weights("efficientnet_lite0", None, folders["imagenet"])
    for mode, start in (("finetune", folders["imagenet"]), ("infer", folders["finetune"] / "weights")):
        folders[mode].mkdir()
        execute(folders[mode], MODE=mode, COMPETITION_DIR=str(folders["competition"]), WEIGHTS_DIR=str(start))
    return folders


def test_submission_is_valid(runs):
    index = runs["finetune"] / "index.csv"
    verdict = submission_validator.validate(
        runs["finetune"] / "submission.csv", runs["competition"] / "sample_submission.csv", index
    )
    assert verdict.faults == []
    sample = pd.read_csv(runs["competition"] / "sample_submission.csv")
    assert pd.read_csv(runs["finetune"] / "submission.csv")["id"].tolist() == sample["id"].tolist()
    images = sample["id"].str.endswith("_image").sum()
    assert len(verdict.holdings.confidences["none"]) == images
    assert all(len(verdict.holdings.confidences[name]) == len(sample) - images for name in CLASSES[:4])


def test_scores_have_every_model_and_class(runs):
    scores = json.loads((runs["finetune"] / "scores.json").read_text())
    assert list(scores) == ["rcnn", "yolo", "ensemble"]
    for row in scores.values():
        assert list(row) == [*CLASSES, "mean"]
        assert 0 <= row["mean"] <= 1


def test_inference_gives_the_same_bytes(runs):
    for name in (
        "submission.csv",
        "submissions/rcnn.csv",
        "submissions/yolo.csv",
        "detections.csv",
        "study_probabilities.csv",
    ):
        assert (runs["infer"] / name).read_bytes() == (runs["finetune"] / name).read_bytes(), name


def test_weights_and_configuration_are_left(runs):
    manifest = weights_manifest.read_manifest(runs["finetune"] / "weights")
    assert sorted(manifest) == ["rcnn.safetensors", "study.safetensors", "yolo.safetensors"]
    assert paths.is_weights(runs["finetune"] / "weights")
    facts = json.loads((runs["finetune"] / "weights" / "rcnn.json").read_text())
    assert facts["config"]["size"] == TINY["rcnn.size"]
    assert json.loads((runs["finetune"] / "run.json").read_text())["preset"]["cache_size"] == TINY["cache_size"]


def test_notebook_shows_pictures_and_no_error(runs):
    cells = json.loads((runs["finetune"] / "out.ipynb").read_text())["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output["output_type"] == "error"]
    pictures = sum("image/png" in output.get("data", {}) for output in outputs)
    assert pictures == 4 + 1 + 1 + 1 + 4 + 1  # data, sample images, training, gallery, scores, times


def test_epochs_of_the_trial_are_not_shown_as_training(runs):
    cells = json.loads((runs["finetune"] / "out.ipynb").read_text())["cells"]
    printed = {
        "".join(cell["source"]): "".join(line for output in cell.get("outputs", []) for line in output.get("text", []))
        for cell in cells
    }
    assert [source for source, text in printed.items() if "  loss " in text] == [
        "show.show_training(run, steps.fit(run))"
    ]


def test_notebook_in_the_repository_is_clean():
    notebook = json.loads(NOTEBOOK.read_text())
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert [cell["metadata"].get("tags") for cell in code].count(["parameters"]) == 1
    assert all(len(cell["source"]) <= 16 for cell in code)
    assert len(code) <= 13
    headings = ["".join(c["source"]).splitlines()[0] for c in notebook["cells"] if c["cell_type"] == "markdown"]
    assert [line.removeprefix("## ") for line in headings[1:]] == HEADINGS


def test_the_record_of_a_run(runs):
    for mode in ("finetune", "infer"):
        record = json.loads((runs[mode] / "run.json").read_text())
        assert record["mode"] == mode
        assert record["competition"] == str(runs["competition"])
        assert record["degraded"] == record["dropped"] == record["failures"] == []
        assert [row["step"] for row in record["steps"]] == list(record["seconds"])
        assert all(row["seconds"] == record["seconds"][row["step"]] for row in record["steps"])
        assert record["total"]["predicted_seconds"] > 0
    last = json.loads((runs["finetune"] / "out.ipynb").read_text())["cells"][-1]["outputs"]
    said = "".join(line for output in last for line in output.get("text", []))
    assert "DEGRADED: nothing" in said
    assert "Dropped to fit the hours: nothing" in said


def test_a_damaged_sample_and_model_still_submit(runs, tmp_path):
    """The faults of test_faults.py run in one process; this one goes through papermill, as Kaggle would."""
    competition, given = tmp_path / "competition", tmp_path / "weights"
    shutil.copytree(runs["competition"], competition)
    shutil.copytree(runs["finetune"] / "weights", given)
    (competition / "sample_submission.csv").write_bytes(b"")
    (given / "yolo.safetensors").write_bytes(b"\0" * 100)
    notebook = execute(tmp_path, MODE="infer", COMPETITION_DIR=str(competition), WEIGHTS_DIR=str(given))
    assert (
        submission_validator.validate(tmp_path / "submission.csv", runs["competition"] / "sample_submission.csv").faults
        == []
    )
    said = "".join(output.get("text", "") for output in notebook.cells[-1].outputs)
    assert "sample_submission.csv is empty" in said
    assert "yolo.safetensors is damaged" in said


def test_bad_parameters_are_sentences(runs, tmp_path):
    """In development STRICT says so at once; without it the defaults run, see test_faults.py."""
    good = {"competition_dir": runs["competition"], "weights_dir": runs["imagenet"], "output_dir": tmp_path}
    for bad, said in [
        ({"mode": "train"}, "MODE"),
        ({"hours": 0}, "HOURS"),
        ({"preset": "medium"}, "'full' or 'small'"),
        ({"overrides": {"rcnn.epochs": 1}}, "no setting 'rcnn.epochs'"),
        ({"overrides": "rcnn.epochs=1"}, "OVERRIDES must be JSON"),
        ({"competition_dir": tmp_path / "none"}, "none"),
        ({"weights_dir": tmp_path}, str(tmp_path)),
    ]:
        with pytest.raises(InputError, match=said):
            steps.start(**{**good, "preset": "demo", "strict": True, **bad})


def test_local_fine_tuning_needs_no_weights_folder(runs, tmp_path):
    run = steps.start(
        str(runs["competition"]), "", str(tmp_path), "demo", "finetune", 9, '{"yolo.training.epochs": 1}', True
    )
    assert run.preset.yolo.training.epochs == 1
    assert weights_manifest.read_manifest(run.inputs.weights).keys() == {"efficientnet_lite0.safetensors"}
    assert (
        submission_validator.validate(tmp_path / "submission.csv", runs["competition"] / "sample_submission.csv").faults
        == []
    )
