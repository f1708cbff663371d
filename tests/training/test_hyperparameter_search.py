"""The search: what a space file may say, which trials come of it, what is run, kept, resumed and refused."""

import json
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from siimcovid.apps.command_line import main
from siimcovid.core.errors import InputError
from siimcovid.core.labels import STUDY_LABELS
from siimcovid.core.overrides import override
from siimcovid.core.presets import DEMO, FULL, PRESETS, load_preset
from siimcovid.models import checkpoints
from siimcovid.synthetic.demo_competition import write_competition
from siimcovid.synthetic.pretraining_sets import write_pretraining
from siimcovid.training import hyperparameter_search
from siimcovid.training.hyperparameter_search import as_set, best, claimed, collect
from siimcovid.training.search_space import Range, find_space, name_of, read_space, trials
from siimcovid.training.training_loop import NotFiniteError

pytestmark = pytest.mark.slow

LEARNING_RATE, DROPOUT = "study.training.learning_rate", "study.dropout"


@pytest.fixture
def space(tmp_path):
    """Write a space file and read it for the study model."""

    def read(text: str, stage: str = "study"):
        path = tmp_path / "space.yaml"
        path.write_text(text, encoding="utf-8")
        return read_space(path, stage, DEMO)

    return read


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_the_reports_search_is_shipped(preset):
    shipped = read_space(find_space("study"), "study", preset)
    choices = {key: [] for key in ("optimizer", "learning_rate", "schedule", "floor", "batch")}
    for part in shipped.parts:
        for choice in [] if isinstance(part, Range) else part:
            for key, value in choice.items():
                choices[key.removeprefix("study.training.")].append(value)
    assert choices == {
        "optimizer": ["sgd", "adam"],
        "learning_rate": [0.0001, 0.0002, 0.0005, 0.001],
        "schedule": ["cosine", "cosine", "constant"],
        "floor": [0.05, 0.25],
        "batch": [15, 35],
    }
    assert [part for part in shipped.parts if isinstance(part, Range)] == [
        Range("study.training.weight_decay", 1e-5, 0.3, log=True),
        Range("study.dropout", 0.5, 0.7),
    ]
    for settings in trials(shipped):
        override(preset, settings)


def test_a_grid_is_every_combination_once(space):
    grid = space(f"""
        method: grid
        space:
          {DROPOUT}: [0.5, 5e-1, 0.7]
          course:
            - {{study.training.schedule: cosine, study.training.floor: 0.25}}
            - {{study.training.schedule: constant}}
    """)
    cosine = {"study.training.schedule": "cosine", "study.training.floor": 0.25}
    constant = {"study.training.schedule": "constant"}
    assert trials(grid) == [{DROPOUT: p} | course for p in (0.5, 0.7) for course in (cosine, constant)]
    with pytest.raises(InputError, match="grid has as many"):
        trials(grid, 2)


def test_random_trials(space):
    """Within their ranges, each once, the same for the same seed, and more of them begin with the fewer."""
    random = space(f"""
        method: random
        trials: 40
        space:
          {LEARNING_RATE}: {{low: 1e-4, high: 1.0e-2, log: true}}
          {DROPOUT}: {{low: 0.5, high: 0.7}}
          study.hidden: [8, 16]
    """)
    drawn = trials(random, seed=1)
    assert len(drawn) == len({name_of(settings) for settings in drawn}) == 40
    table = pd.DataFrame(drawn)
    assert table[LEARNING_RATE].between(1e-4, 1e-2).all()
    assert 0.3 < (table[LEARNING_RATE] < 1e-3).mean() < 0.7  # half of a logarithmic scale, a tenth of a plain one
    assert table[DROPOUT].between(0.5, 0.7).all()
    assert table[[LEARNING_RATE, DROPOUT]].map(lambda value: float(f"{value:.3g}") == value).all(axis=None)
    assert set(table["study.hidden"]) == {8, 16}
    assert trials(random, seed=1) == drawn != trials(random, seed=2)
    assert trials(random, 7, seed=1) == drawn[:7]


def test_a_random_search_ends_where_there_is_no_more(space):
    few = space(f"{{method: random, trials: 9, space: {{{DROPOUT}: [0.1, 0.2], study.hidden: [8, 16]}}}}")
    assert len(trials(few)) == 4
    with pytest.raises(InputError, match="how many"):
        trials(space(f"{{method: random, space: {{{DROPOUT}: [0.1]}}}}"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("method: [", "no YAML"),
        ("just text", "must hold"),
        ("{method: grid, space: {}}", "must hold"),
        ("{method: tpe, space: {study.dropout: [0.1]}}", "grid or random, not 'tpe'"),
        ("{method: random, trails: 3, space: {study.dropout: [0.1]}}", "did you mean 'trials'"),
        ("{method: random, trials: 0, space: {study.dropout: [0.1]}}", "whole number above 0"),
        ("{method: grid, space: {study.droput: [0.1]}}", "did you mean 'study.dropout'"),
        ("{method: grid, space: {training.learning_rate: [0.1]}}", "did you mean '.*training.learning_rate'"),
        ("{method: grid, space: {schedule: [cosine]}}", "no setting 'schedule'"),
        ("{method: grid, space: {study.hidden: [8, 8.5]}}", "study.hidden.*whole number, .*not 8.5"),
        ("{method: grid, space: {study.training.optimizer: [sgd, lion]}}", "not 'lion'"),
        ("{method: grid, space: {rcnn.size: [64]}}", "cannot change rcnn.size"),
        ("{method: grid, space: {fold: [0, 1]}}", "cannot change fold"),
        ("{method: grid, space: {study.training.validate: [false]}}", "cannot change study.training.validate"),
        ("{method: grid, space: {study.dropout: 0.5}}", "must be a list or a range"),
        ("{method: grid, space: {study.dropout: []}}", "must be a list or a range"),
        ("{method: grid, space: {study.dropout: {low: 0.1, high: 0.2}}}", "grid cannot try"),
        ("{method: random, space: {study.dropout: {low: 0.1, hihg: 0.2}}}", "must be a list or a range"),
        ("{method: random, space: {study.dropout: {low: 0.3, high: 0.2}}}", "low to a high"),
        ("{method: random, space: {study.dropout: {low: 0, high: 0.2, log: true}}}", "both above 0"),
        ("{method: random, space: {study.hidden: {low: 8, high: 16}}}", "list the values"),
        ("{method: grid, space: {study.dropout: [0.1], both: [{study.dropout: 0.2}]}}", "study.dropout stands.* twice"),
    ],
)
def test_faulty_spaces_are_refused(space, text, said):
    with pytest.raises(InputError, match=said):
        space(text)


def test_an_unknown_space_is_answered_with_those_there_are():
    with pytest.raises(InputError, match=r"no space file nothing.*shipped: study"):
        read_space(find_space("nothing"), "study", FULL)


def test_names_do_not_depend_on_the_order_of_settings():
    assert name_of({"a": 1, "b": 2}) == name_of({"b": 2, "a": 1}) != name_of({"a": 2, "b": 1})


def test_settings_as_text():
    settings = {DROPOUT: 0.5, "rcnn.anchor_sides": [24, 48], "study.frozen": True}
    text = as_set(settings)
    assert text == "--set study.dropout=0.5 --set rcnn.anchor_sides=24,48 --set study.frozen=True"
    changes = dict(part.split("=") for part in text.split() if part != "--set")
    assert override(DEMO, changes) == override(DEMO, settings)


class Recorder:
    """Stands for train_stage.fit: the best epoch's metric is the learning rate; remembers what was asked."""

    def __init__(self):
        self.rates, self.stop = [], None

    def __call__(self, stage, preset, images, cache, start, folder, features):
        rate = preset.study.training.learning_rate
        self.rates.append(rate)
        assert preset.study.training.validate
        if rate == self.stop:
            raise KeyboardInterrupt
        if rate > 1:
            (folder / "study.resume.pt").write_bytes(b"half")
            raise NotFiniteError("the loss of stage study is nan,\nimages a, b")
        history = {"epoch": [1, 2, 3], "metric": [0.1, rate, 0.2], "seconds": [1.0, 2.0, 4.5]}
        pd.DataFrame(history).to_csv(folder / "study.metrics.csv", index=False)
        (folder / "study.safetensors").write_bytes(b"model")


RATES = [{LEARNING_RATE: rate} for rate in (0.3, 7.0, 0.5, 0.4)]
IMAGES = pd.DataFrame(
    {
        "image_id": [*"abcdef"],
        "study_id": [*"abcdef"],
        "patient_id": [*"abcdef"],
        "split": "train",
        "boxes": [[]] * 6,
        "study_label": [*STUDY_LABELS, *STUDY_LABELS[:2]],
        "annotated": True,
    }
)


@pytest.fixture
def recorder(monkeypatch):
    stand_in = Recorder()
    monkeypatch.setattr(hyperparameter_search, "fit", stand_in)
    return stand_in


def run(out, runs=RATES, preset=DEMO, images=IMAGES):
    return hyperparameter_search.search("study", runs, preset, images, out, None, out)


def test_one_table_best_first(recorder, tmp_path):
    table = run(tmp_path)
    assert recorder.rates == [0.3, 7.0, 0.5, 0.4]
    assert table.columns.tolist() == [
        *("rank", "trial", "metric", "best_epoch", "seconds", LEARNING_RATE, "state", "reason")
    ]
    assert table["rank"].tolist() == [1, 2, 3, pd.NA]
    assert table[LEARNING_RATE].tolist() == [0.5, 0.4, 0.3, 7.0]
    assert table["metric"].tolist()[:3] == [0.5, 0.4, 0.3]
    assert table["best_epoch"].tolist() == [2, 2, 2, pd.NA]
    assert table["seconds"].tolist()[:3] == [7.5] * 3
    assert table["state"].tolist() == ["finished"] * 3 + ["failed"]
    assert table["reason"].iloc[3] == "the loss of stage study is nan, images a, b"
    written = pd.read_csv(tmp_path / "search.csv")
    assert written[[LEARNING_RATE, "state"]].to_numpy().tolist() == table[[LEARNING_RATE, "state"]].to_numpy().tolist()
    folder, settings = best(tmp_path, table)
    assert settings == {LEARNING_RATE: 0.5}
    assert [path.parent for path in tmp_path.glob("trials/*/*.safetensors")] == [folder]
    assert not list(tmp_path.glob("trials/*/*.resume.pt"))


def test_ended_trials_are_not_run_again_and_interrupted_ones_are(recorder, tmp_path):
    recorder.stop = 0.5
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    assert pd.read_csv(tmp_path / "search.csv")["state"].tolist() == ["finished", "failed"]
    recorder.stop, recorder.rates = None, []
    run(tmp_path)
    assert recorder.rates == [0.5, 0.4]
    table = run(tmp_path, [*RATES, {LEARNING_RATE: 0.6, DROPOUT: 0.1}])
    assert recorder.rates == [0.5, 0.4, 0.6]
    assert table["rank"].tolist() == [1, 2, 3, 4, pd.NA]
    assert table[DROPOUT].isna().tolist() == [False, True, True, True, True]


def test_a_trial_that_another_process_runs_is_left_to_it(recorder, tmp_path):
    folder = tmp_path / "trials" / name_of(RATES[2])
    with claimed(folder) as ours:
        assert ours
        assert len(run(tmp_path)) == 3
        with claimed(folder) as again:
            assert not again
    assert recorder.rates == [0.3, 7.0, 0.4]
    assert len(run(tmp_path)) == 4
    assert recorder.rates == [0.3, 7.0, 0.4, 0.5]


def test_a_folder_is_of_one_search(recorder, tmp_path):
    run(tmp_path)
    others = [
        ("config.hidden", {"preset": load_preset("demo", {"study.hidden": 8})}),
        ("cache.size", {"preset": load_preset("demo", {"cache_size": 99})}),
        ("held_out, images", {"preset": load_preset("demo", {"fold": 1})}),
        ("images", {"images": IMAGES.tail(5)}),
        ("images", {"images": IMAGES.assign(study_label="typical")}),
    ]
    for said, other in others:
        with pytest.raises(InputError, match=f"{said}.*another folder"):
            run(tmp_path, **other)
    run(tmp_path)
    assert len(recorder.rates) == 4


def test_without_a_finished_trial(recorder, tmp_path):
    table = run(tmp_path, RATES[1:2])
    assert table["rank"].tolist() == [pd.NA]
    assert best(tmp_path, table) is None
    assert collect(tmp_path / "nothing").empty


def test_a_real_search(tmp_path):
    """Two epochs of a tiny study model: the same trial gives the same metric, and a loss that is not finite fails."""
    rng, rows = np.random.default_rng(0), []
    for k in range(8):
        cv2.imwrite(str(tmp_path / f"image{k}.png"), rng.integers(0, 256, (48, 40), dtype=np.uint8))
        names = {key: f"{key}{k}" for key in ("study_id", "patient_id")}
        rows.append(
            {"image_id": f"image{k}", **names, "split": "train", "boxes": [], "study_label": STUDY_LABELS[k % 4]}
        )
    images = pd.DataFrame(rows).assign(annotated=True)
    tiny = {"study.size": 64, "study.infer_size": 64, "study.views": 0, "study.training.batch": 4, "folds": 2}
    preset = load_preset("demo", tiny | {"study.training.epochs": 2})
    runs = [{LEARNING_RATE: 1e-3}, {LEARNING_RATE: 1e38, "study.training.optimizer": "sgd"}]
    tables = [
        hyperparameter_search.search("study", runs, preset, images, tmp_path, None, tmp_path / name).drop(
            columns="seconds"
        )
        for name in ("once", "twice")
    ]
    pd.testing.assert_frame_equal(*tables)
    assert tables[0]["state"].tolist() == ["finished", "failed"]
    assert 0 < tables[0]["metric"].iloc[0] <= 1
    folder, _ = best(tmp_path / "once", tables[0])
    history = pd.read_csv(folder / "study.metrics.csv")
    assert tables[0]["metric"].iloc[0] == history["metric"].max()
    assert checkpoints.load(folder / "study.safetensors")[1].training.learning_rate == 1e-3


def test_the_command(recorder, tmp_path, capsys, monkeypatch):
    data, out = tmp_path / "competition", tmp_path / "out"
    write_competition(data, train_studies=6, test_studies=1, seed=0, scale=0.05)
    file = tmp_path / "space.yaml"
    file.write_text(f"{{method: grid, space: {{{LEARNING_RATE}: [0.2, 0.4]}}}}", encoding="utf-8")
    arguments = ["search", "study", str(file), "--data", str(data), "--out", str(out), "--preset", "demo"]
    assert main([*arguments, "--fold", "2", "--set", "study.hidden=8", "--set", "folds=3"]) == 0
    printed = capsys.readouterr().out
    assert f"--set {LEARNING_RATE}=0.4\n" in printed
    facts = json.loads((out / "search.json").read_text(encoding="utf-8"))
    assert (facts["stage"], facts["config"]["hidden"]) == ("study", 8)
    manifests = list(out.glob("trials/*/manifest.json"))
    assert [Path(path).parent.name for path in manifests] == [name_of({LEARNING_RATE: 0.4})]
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(arguments) == 2
    assert "accelerate launch" in capsys.readouterr().err


def test_the_command_on_rsna_takes_the_stages_epochs_there(tmp_path, monkeypatch):
    """And the size of its own cache, as `siimcovid train` does; --set goes before both."""
    write_pretraining(tmp_path / "rsna", "rsna", count=6, seed=0, scale=0.03, workers=1)
    presets = []

    def search(stage, runs, preset, *_):
        presets.append(preset)
        raise InputError("enough")

    monkeypatch.setattr(hyperparameter_search, "search", search)
    file = tmp_path / "space.yaml"
    file.write_text("{method: grid, space: {rcnn.training.learning_rate: [0.2, 0.4]}}", encoding="utf-8")
    arguments = ["search", "rcnn", str(file), "--data", str(tmp_path / "rsna"), "--out", str(tmp_path / "out")]
    arguments += ["--preset", "small", "--set", "rsna_cache_size=96", "--set", "rcnn.rsna_epochs=3"]
    assert main(arguments) == main([*arguments, "--set", "rcnn.training.epochs=5", "--set", "cache_size=64"]) == 2
    assert [(preset.rcnn.training.epochs, preset.cache_size) for preset in presets] == [(3, 96), (5, 64)]
