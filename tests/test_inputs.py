"""Numbers that lie beside the weights: taken over, overruled by OVERRIDES, refused where they are damaged, and used."""

import json

import pandas as pd
import pytest

from siimcovid import LEVELS, combination, pipeline
from siimcovid.phantom_competition import write_competition
from siimcovid.presets import SMALL
from tiny_weights import write_weights

NUMBERS = {
    "fusion.weights": [1.0, 3.0],
    "crosstalk.none": [0.5, 1.0, 0.5, 0.25, 0.0],
    "crosstalk.sides": [0.5, -1.0, 0.0, 1.0, 0.0, 0.5, -0.5, 0.0, -0.5, 0.5, 1.0, -1.0],
    "crosstalk.level_sides": [3.0, 0.1, 0.1, 0.1, 0.2, 2.0, 0.1, 3.0, 0.7, 0.6, 2.0, 0.4],
    "crosstalk.opacity_none": 0.5,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A competition, and weights that know nothing with fitted numbers beside them."""
    top = tmp_path_factory.mktemp("inputs")
    write_competition(top / "competition", train_studies=4, test_studies=4, seed=1, scale=0.03)
    combination.write(write_weights(top / "weights"), NUMBERS, SMALL, "nothing")
    return top


def start(folders, out, weights="weights", **overrides):
    given = str(folders / "competition"), str(folders / weights), str(out)
    return pipeline.start(*given, "small", overrides={"cache_size": 96, **overrides})


def test_fitted_numbers_are_taken_over(folders, tmp_path, capsys):
    run = start(folders, tmp_path)
    assert run.preset.fusion.weights == (1.0, 3.0)
    assert run.preset.crosstalk.none == tuple(NUMBERS["crosstalk.none"])
    assert run.preset.cache_size == 96
    assert "combination.json" in capsys.readouterr().out
    assert run.degraded == []
    asked = json.loads((tmp_path / "run.json").read_text())["asked"]
    assert asked["crosstalk"]["sides"] == NUMBERS["crosstalk.sides"]


def test_overrides_go_before_them(folders, tmp_path):
    run = start(folders, tmp_path, **{"fusion.weights": [2, 1], "crosstalk.sides": []})
    assert run.preset.fusion.weights == (2.0, 1.0)
    assert run.preset.crosstalk.sides == ()
    assert run.preset.crosstalk.opacity_none == 0.5


def test_damaged_numbers_are_recorded_and_left(folders, tmp_path):
    for path in (folders / "weights").iterdir():
        (tmp_path / "weights").mkdir(exist_ok=True)
        (tmp_path / "weights" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "weights" / combination.FILE).write_text('{"crosstalk.opacity_none": 0.25}')
    run = start(folders, tmp_path / "out", tmp_path / "weights")
    assert run.preset.crosstalk == SMALL.crosstalk
    (fault,) = run.degraded
    assert fault["step"] == "weights"
    assert combination.FILE in fault["reason"]


def test_the_submission_is_the_combined_answer(folders, tmp_path):
    run = start(folders, tmp_path)
    pipeline.plan(run)
    pipeline.prepare(run)
    pipeline.fit(run)
    detections = pipeline.detect(run)
    levels = pipeline.classify(run)
    pipeline.submit(run, detections, levels)
    assert run.degraded == []
    from siimcovid.combine import combine
    from siimcovid.inference import said

    answer = combine(said(run, detections), run.preset)
    written = pd.read_csv(tmp_path / "submission.csv").set_index("id")["PredictionString"]
    for study, *values in answer.levels[["study_id", *LEVELS]].itertuples(index=False):
        assert [float(text) for text in written[f"{study}_study"].split()[1::6]] == pytest.approx(values, abs=1e-7)
    for film, value in answer.none.items():
        assert float(written[f"{film}_image"].split()[1]) == pytest.approx(value, abs=1e-7)
    kept = pd.read_csv(tmp_path / "detections.csv", dtype={"image_id": str})
    ensemble = kept[kept["model"] == "ensemble"]
    assert ensemble["score"].to_numpy() == pytest.approx(answer.detections["score"].to_numpy())
    assert not answer.levels["negative"].equals(levels["negative"])
    alone = pd.read_csv(tmp_path / "submissions" / "rcnn.csv").set_index("id")["PredictionString"]
    study, *values = levels[["study_id", *LEVELS]].iloc[0]
    assert [float(text) for text in alone[f"{study}_study"].split()[1::6]] == pytest.approx(values, abs=1e-7)


def test_a_third_detector_is_a_name_in_the_settings(folders, tmp_path):
    """RetinaNet looks, is fused and has a submission of its own; numbers for two are refused for three."""
    write_weights(tmp_path / "three", ("rcnn", "yolo", "retinanet", "study"))
    three = {"fusion.detectors": ["rcnn", "yolo", "retinanet"], "fusion.weights": [1, 1, 1]}
    three |= {"fusion.calibration": [], "crosstalk.none": [], "fusion.flips": True}
    run = start(folders, tmp_path / "out", tmp_path / "three", **three)
    pipeline.prepare(run)
    pipeline.fit(run)
    detections = pipeline.detect(run)
    pipeline.submit(run, detections, pipeline.classify(run))
    assert run.degraded == []
    assert {"rcnn", "yolo", "retinanet", "ensemble"} <= set(detections["model"])
    assert (tmp_path / "out" / "submissions" / "retinanet.csv").is_file()
    table = pd.read_csv(tmp_path / "out" / "detections.csv")
    assert {"retinanet", "retinanet_flip"} <= set(table["model"])
    wrong = start(folders, tmp_path / "wrong", tmp_path / "three", **three | {"fusion.weights": [1, 1]})
    assert [fault["step"] for fault in wrong.degraded] == ["parameters"]
    assert "it needs 1 for each of the detectors rcnn, yolo, retinanet" in wrong.degraded[0]["reason"]
