"""The paired bootstrap: weights equal to copied data, equal submissions, a clear difference, and the command."""

import numpy as np
import pandas as pd
import pytest

from siimcovid.apps.command_line import main
from siimcovid.core.errors import InputError
from siimcovid.core.labels import CLASSES, STUDY_COLUMNS, STUDY_LABELS
from siimcovid.evaluation.mean_average_precision import compare, score
from siimcovid.evaluation.paired_bootstrap import (
    _precisions,
    _ranked,
    group_by_index,
    group_by_study,
    paired_bootstrap,
)


def world(patients=30, noise=1.0, seed=0):
    """Ground truth of two images and a study a patient, and a submission that knows it up to `noise`."""
    truth_rng, rng = np.random.default_rng(5), np.random.default_rng(seed)
    images, studies, rows = [], [], []
    for k in range(patients):
        label = int(truth_rng.integers(4))
        studies.append({"id": f"s{k}_study", **{c: int(i == label) for i, c in enumerate(STUDY_COLUMNS)}})
        confidence = [float((i == label) + noise * abs(rng.normal())) for i in range(4)]
        words = [f"{name} {value:.4f} 0 0 1 1" for name, value in zip(STUDY_LABELS, confidence, strict=True)]
        rows.append({"id": f"s{k}_study", "PredictionString": " ".join(words)})
        for n in range(2):
            boxed = label != 0 and n == 0
            true = "opacity 1 10 10 50 60" if boxed else "none 1 0 0 1 1"
            images.append({"id": f"i{k}{n}_image", "label": true, "StudyInstanceUID": f"s{k}"})
            sure, shift = boxed + noise * rng.normal(), rng.integers(0, 25)
            text = f"opacity {sure + 5:.4f} {10 + shift} 10 {50 + shift} 60 none {5 - sure:.4f} 0 0 1 1"
            rows.append({"id": f"i{k}{n}_image", "PredictionString": text})
    return pd.DataFrame(images), pd.DataFrame(studies), pd.DataFrame(rows)


def copied(table, column, copies):
    """The rows whose group is drawn k times, k times, each copy with ids of its own."""
    parts = []
    for group, count in copies.items():
        for number in range(count):
            part = table[table[column] == group]
            parts.append(part.assign(id=part["id"].str.replace("_", f"x{number}_", n=1)))
    return pd.concat(parts, ignore_index=True)


def test_weights_are_copies_of_the_data():
    images, studies, submission = world()
    groups = np.array([name[1:].split("_")[0] for name in [*studies["id"], *images["id"]]])
    groups = [f"p{name[:-1] if kind else name}" for name, kind in zip(groups, [0] * 30 + [1] * 60, strict=True)]
    of_id = dict(zip([*studies["id"], *images["id"]], groups, strict=True))
    rng = np.random.default_rng(1)
    copies = {f"p{k}": int(rng.integers(0, 4)) for k in range(30)}
    comparison = compare(submission, images, studies)
    weight = np.array([float(copies[of_id[name]]) for name in comparison.ids])
    weighted = _precisions(_ranked(comparison), weight)
    tables = [t.assign(group=t["id"].map(of_id)) for t in (images, studies, submission)]
    images, studies, submission = (copied(t, "group", copies).drop(columns="group") for t in tables)
    expected = score(submission, images, studies)
    assert weighted == pytest.approx([expected[name] for name in (*CLASSES, "mean")], abs=1e-12)


def test_equal_submissions_do_not_differ():
    images, studies, submission = world()
    groups = dict(zip([*studies["id"], *images["id"]], [f"g{k % 9}" for k in range(90)], strict=True))
    (found,) = paired_bootstrap({"a": submission, "b": submission}, images, studies, groups, draws=50)
    assert (found.table[["difference", "low", "high"]] == 0).all(axis=None)
    assert (found.table["probability"] == 0.5).all()
    assert found.groups == 9


def test_a_better_submission_is_told_and_the_draws_depend_on_the_seed_alone():
    images, studies, worse = world(noise=3.0, seed=1)
    better = world(noise=0.1, seed=2)[2]
    groups = {name: name.split("_")[0].lstrip("si")[:2] for name in [*studies["id"], *images["id"]]}
    runs = [
        paired_bootstrap({"worse": worse, "better": better}, images, studies, groups, 200, seed)[0].table
        for seed in (0, 0, 1)
    ]
    assert runs[0].loc["mean", "low"] > 0.1
    assert runs[0].loc["mean", "probability"] == 1
    pd.testing.assert_frame_equal(runs[0], runs[1])
    assert not runs[0].equals(runs[2])
    assert (runs[0]["difference"] == runs[2]["difference"]).all()  # of all the data, whatever is drawn
    expected = score(better, images, studies)["mean"] - score(worse, images, studies)["mean"]
    assert runs[0].loc["mean", "difference"] == pytest.approx(expected)


def test_groups_and_what_they_refuse():
    images, studies, submission = world(patients=2)
    index = pd.DataFrame({"image_id": ["i00", "i01"], "study_id": ["s0", "s0"], "patient_id": ["p", "p"]})
    assert group_by_index(["i01_image", "s0_study"], index).tolist() == ["p", "p"]
    with pytest.raises(InputError, match="the index does not say of which patient i10_image is"):
        group_by_index(["i10_image"], index)
    assert group_by_study(["i10_image", "s0_study"], images).tolist() == ["s1", "s0"]
    with pytest.raises(InputError, match="no column StudyInstanceUID"):
        group_by_study(["i10_image"], images.drop(columns="StudyInstanceUID"))
    with pytest.raises(InputError, match="needs two submissions"):
        paired_bootstrap({"a": submission}, images, studies, {})
    both = {"a": submission, "b": submission.iloc[1:]}
    with pytest.raises(InputError, match="b has other ids than the first submission"):
        paired_bootstrap(both, images, studies, {}, subset=True)


def test_the_command_compares(tmp_path, capsys):
    images, studies, worse = world(noise=3.0, seed=1)
    tables = {"images": images, "studies": studies, "worse": worse, "better": world(noise=0.1, seed=2)[2]}
    for name, table in tables.items():
        table.to_csv(tmp_path / f"{name}.csv", index=False)
    given = ["score", str(tmp_path / "worse.csv"), str(tmp_path / "better.csv"), "--draws", "100"]
    given += ["--images", str(tmp_path / "images.csv"), "--studies", str(tmp_path / "studies.csv")]
    assert main(given) == 0
    printed = capsys.readouterr().out
    assert "better minus worse, paired bootstrap over 30 studies (no --index, so not over patients)" in printed
    ids = [(f"i{k}{n}", f"s{k}", f"p{k // 2}") for k in range(30) for n in range(2)]
    index = pd.DataFrame(ids, columns=["image_id", "study_id", "patient_id"])
    index.to_csv(tmp_path / "index.csv", index=False)
    assert main([*given, "--index", str(tmp_path / "index.csv")]) == 0
    assert "paired bootstrap over 15 patients:" in capsys.readouterr().out
