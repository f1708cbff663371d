"""Numbers that lie beside the weights: taken over, overruled by OVERRIDES, refused where they are damaged, and used."""

import json

import pandas as pd
import pytest

from siimcovid.core.labels import STUDY_LABELS
from siimcovid.core.presets import DEMO
from siimcovid.inference import fitted_numbers
from siimcovid.kernel import steps
from siimcovid.synthetic.demo_competition import write_competition
from support.tiny_weights import write_weights

NUMBERS = {
    "fusion.weights": [1.0, 3.0],
    "late_fusion.none": [0.5, 1.0, 0.5, 0.25, 0.0, 0.0, 0.0],
    "late_fusion.laterality": [0.5, -1.0, 0.0, 1.0, 0.0, 0.5, -0.5, 0.0, -0.5, 0.5, 1.0, -1.0],
    "late_fusion.label_laterality": [3.0, 0.1, 0.1, 0.1, 0.2, 2.0, 0.1, 3.0, 0.7, 0.6, 2.0, 0.4],
    "late_fusion.opacity_none": 0.5,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A competition, and weights that know nothing with fitted numbers beside them."""
    top = tmp_path_factory.mktemp("inputs")
    write_competition(top / "competition", train_studies=4, test_studies=4, seed=1, scale=0.03)
    fitted_numbers.write(write_weights(top / "weights"), NUMBERS, DEMO, "nothing")
    return top


def start(folders, out, weights="weights", **overrides):
    given = str(folders / "competition"), str(folders / weights), str(out)
    return steps.start(*given, "demo", overrides={"cache_size": 96, **overrides})


def test_fitted_numbers_are_taken_over(folders, tmp_path, capsys):
    run = start(folders, tmp_path)
    assert run.preset.fusion.weights == (1.0, 3.0)
    assert run.preset.late_fusion.none == tuple(NUMBERS["late_fusion.none"])
    assert run.preset.cache_size == 96
    assert "ensemble.json" in capsys.readouterr().out
    assert run.degraded == []
    requested = json.loads((tmp_path / "run.json").read_text())["requested"]
    assert requested["late_fusion"]["laterality"] == NUMBERS["late_fusion.laterality"]


def test_overrides_go_before_them(folders, tmp_path):
    run = start(folders, tmp_path, **{"fusion.weights": [2, 1], "late_fusion.laterality": []})
    assert run.preset.fusion.weights == (2.0, 1.0)
    assert run.preset.late_fusion.laterality == ()
    assert run.preset.late_fusion.opacity_none == 0.5


def test_damaged_numbers_are_recorded_and_left(folders, tmp_path):
    for path in (folders / "weights").iterdir():
        (tmp_path / "weights").mkdir(exist_ok=True)
        (tmp_path / "weights" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "weights" / fitted_numbers.FILE).write_text('{"late_fusion.opacity_none": 0.25}')
    run = start(folders, tmp_path / "out", tmp_path / "weights")
    assert run.preset.late_fusion == DEMO.late_fusion
    (fault,) = run.degraded
    assert fault["step"] == "weights"
    assert fitted_numbers.FILE in fault["reason"]


def test_the_submission_is_the_combined_answer(folders, tmp_path):
    run = start(folders, tmp_path)
    steps.plan(run)
    steps.prepare(run)
    steps.fit(run)
    detections = steps.detect(run)
    study_probs = steps.classify(run)
    steps.submit(run, detections, study_probs)
    assert run.degraded == []
    from siimcovid.inference.ensemble import combine
    from siimcovid.kernel.write_submissions import model_outputs

    prediction = combine(model_outputs(run, detections), run.preset)
    written = pd.read_csv(tmp_path / "submission.csv").set_index("id")["PredictionString"]
    for study, *values in prediction.study_probs[["study_id", *STUDY_LABELS]].itertuples(index=False):
        assert [float(text) for text in written[f"{study}_study"].split()[1::6]] == pytest.approx(values, abs=1e-7)
    for image, value in prediction.none.items():
        assert float(written[f"{image}_image"].split()[1]) == pytest.approx(value, abs=1e-7)
    kept = pd.read_csv(tmp_path / "detections.csv", dtype={"image_id": str})
    ensemble = kept[kept["model"] == "ensemble"]
    assert ensemble["score"].to_numpy() == pytest.approx(prediction.detections["score"].to_numpy())
    assert not prediction.study_probs["negative"].equals(study_probs["negative"])
    alone = pd.read_csv(tmp_path / "submissions" / "rcnn.csv").set_index("id")["PredictionString"]
    study, *values = study_probs[["study_id", *STUDY_LABELS]].iloc[0]
    assert [float(text) for text in alone[f"{study}_study"].split()[1::6]] == pytest.approx(values, abs=1e-7)


def test_a_third_detector_is_a_name_in_the_settings(folders, tmp_path):
    """RetinaNet looks, is fused and has a submission of its own; numbers for two are refused for three."""
    write_weights(tmp_path / "three", ("rcnn", "yolo", "retinanet", "study"))
    three = {"fusion.detectors": ["rcnn", "yolo", "retinanet"], "fusion.weights": [1, 1, 1]}
    three |= {"fusion.calibration": [], "late_fusion.none": [], "fusion.hflip_tta": True}
    run = start(folders, tmp_path / "out", tmp_path / "three", **three)
    steps.prepare(run)
    steps.fit(run)
    detections = steps.detect(run)
    steps.submit(run, detections, steps.classify(run))
    assert run.degraded == []
    assert {"rcnn", "yolo", "retinanet", "ensemble"} <= set(detections["model"])
    assert (tmp_path / "out" / "submissions" / "retinanet.csv").is_file()
    table = pd.read_csv(tmp_path / "out" / "detections.csv")
    assert {"retinanet", "retinanet_hflip"} <= set(table["model"])
    wrong = start(folders, tmp_path / "wrong", tmp_path / "three", **three | {"fusion.weights": [1, 1]})
    assert [fault["step"] for fault in wrong.degraded] == ["parameters"]
    assert "it needs 1 for each of the detectors rcnn, yolo, retinanet" in wrong.degraded[0]["reason"]


def test_no_more_study_models_are_asked_for_than_the_weights_hold(folders, tmp_path):
    """A preset may train two, and the weights be of one that trains one; training asks for all."""
    run = start(folders, tmp_path, study_models=2)
    assert run.plan.models(["study"]) == ["study"]
    steps.fit(run)
    assert run.degraded == []
    given = str(folders / "competition"), str(folders / "weights"), str(tmp_path / "trained")
    trained = steps.start(*given, "demo", "finetune", overrides={"study_models": 2})
    assert trained.plan.models(["study"]) == ["study", "study.1"]


def test_no_more_members_are_asked_for_than_there_are_patients(folders, tmp_path, capsys):
    given = str(folders / "competition"), str(folders / "weights"), str(tmp_path)
    images = steps.start(*given, "demo", "finetune").competition.images
    patients = images.loc[images["split"] == "train", "patient_id"].nunique()
    for members in (patients + 1, patients, 1):
        run = steps.start(*given, "demo", "finetune", overrides={"cache_size": 96, "members": members})
        assert run.planner.requested.members == run.preset.members == min(members, patients)
        assert ("there are no more patients" in capsys.readouterr().out) == (members > patients)
    run = start(folders, tmp_path, members=patients + 1)  # nothing is trained
    assert run.preset.members == patients + 1


def test_a_gpu_that_fails_is_named_and_the_run_goes_on(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(steps, "gpu_fault", lambda: "Tesla P100 (sm_60) fails its first operation under torch: …")
    run = start(folders, tmp_path)
    (fault,) = run.degraded
    assert (fault["step"], fault["fallback"]) == ("start", "everything runs on the CPU")
    assert "P100" in (tmp_path / "run.json").read_text(encoding="utf-8")
