"""Pictures show the numbers they are given, and become SVG that belongs to its page."""

import os
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from siimcovid.core.errors import InputError
from siimcovid.data.dataset_statistics import box_table
from siimcovid.evaluation.mean_average_precision import area_under_curve
from siimcovid.reporting import figures
from siimcovid.reporting.figures.figure_style import INK, LINES
from siimcovid.reporting.figures.training_figures import curves_of, spell_seconds
from siimcovid.reporting.html.inline_svg import inline
from siimcovid.reporting.run_folder import evaluate_run, read_run
from support.run_folder import IMAGES, write_run

BOXES = [[[0.1, 0.2, 0.3, 0.6]], [], [[0.1, 0.2, 0.3, 0.4], [0.5, 0.5, 0.9, 0.6]]]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return read_run(write_run(tmp_path_factory.mktemp("figures")))


@pytest.fixture(scope="module")
def evaluations(run):
    return evaluate_run(run)


def heights(axis):
    return [patch.get_height() for patch in axis.patches]


def texts(axis):
    return [text.get_text() for text in axis.texts]


def test_bars_are_the_counts():
    axis = figures.tally_chart("Study labels", {"negative": 30, "typical": 10}, "studies").axes[0]
    assert heights(axis) == [30, 10]
    assert texts(axis) == ["30 (75%)", "10 (25%)"]
    across = figures.tally_chart("Findings", {"Mass": 3, "Hernia": 0}, "findings", across=True).axes[0]
    assert [patch.get_width() for patch in across.patches] == [3, 0]
    assert heights(figures.box_count_chart({0: 4, 1: 2, 8: 1}).axes[0]) == [4, 2, 1]


def test_box_sizes_and_positions():
    axis = figures.box_size_histogram(box_table(pd.Series(BOXES))).axes[0]
    assert sum(heights(axis)) == 2  # the largest of the three lies beyond the 99.5 % that are shown
    assert "median 4.0 %" in texts(axis)[0]
    picture = figures.box_position_map(BOXES).axes[0].images[0].get_array()
    assert picture[int(0.3 * 48), int(0.2 * 48)] == 100  # in a box of both images that have boxes
    assert picture[int(0.5 * 48), int(0.2 * 48)] == 50
    assert picture[0, 0] == 0


def test_pictures_of_nothing_say_so():
    assert texts(figures.box_size_histogram(box_table(pd.Series([[]]))).axes[0]) == ["no boxes"]
    assert texts(figures.box_position_map([[]]).axes[0]) == ["no boxes"]
    assert texts(figures.image_size_chart([]).axes[0]) == ["no sizes known"]


def test_image_sizes_are_columns_by_rows():
    offsets = figures.image_size_chart([[20, 10, 3], [30, 40, 1]]).axes[0].collections[0].get_offsets()
    assert offsets.tolist() == [[10, 20], [40, 30]]


def test_area_under_each_curve_is_its_average_precision(evaluations):
    axes = figures.precision_recall(evaluations).axes
    assert [axis.get_title(loc="left") for axis in axes][4:] == ["none", "opacity"]
    for evaluation, line in zip(evaluations, axes[5].lines, strict=True):
        recall, precision = line.get_data()
        assert (np.diff(recall) * precision[1:]).sum() == pytest.approx(area_under_curve(evaluation.matches["opacity"]))
        assert line.get_color() == LINES[evaluation.name]
        assert line.get_drawstyle() == "steps-pre"  # the interpolated precision holds back to the hit before
    assert len(axes[0].lines) == 1  # the detectors share their study model


def test_confusion_counts_and_shares():
    axis = figures.confusion([[3, 1, 0, 0], [0, 2, 0, 0], [0, 0, 0, 0], [0, 0, 0, 5]]).axes[0]
    assert texts(axis)[:2] == ["3\n75%", "1\n25%"]
    assert texts(axis)[8] == "0\n0%"  # a study label that the truth does not have


def test_calibration_and_f1(evaluations):
    axis = figures.calibration(evaluations, ["opacity"]).axes[0]
    labels = [text.get_text() for text in axis.get_legend().get_texts()]
    assert labels == [f"{figures.MODEL_NAMES[e.name]} {e.calibration['opacity'].error:.3f}" for e in evaluations]
    curves = figures.f1_curves(evaluations).axes[0].lines
    assert max(curves[0].get_ydata()) == pytest.approx(6 / 9)  # at .6: three of four boxes hit three of five
    assert curves[-1].get_xdata()[0] == 0.1


def test_learning_curves(run, tmp_path):
    figure = figures.learning_curves(run.folder / "weights")
    titles = [axis.get_title(loc="left") for axis in figure.axes]
    assert titles == ["yolo: training loss", "yolo: validation metric", "yolo: learning rate"]
    loss = figure.axes[0].lines
    assert [line.get_label() for line in loss] == ["whole", "box", "objectness"]
    assert loss[1].get_ydata().tolist() == [1.5, 0.6]
    assert texts(figure.axes[1]) == ["0.300"]
    assert isinstance(figures.learning_curves(tmp_path), Figure)  # nothing trained


def test_picture_of_the_learning_curves(run, tmp_path):
    """SIIMCOVID_METRICS=FOLDER SIIMCOVID_SCREENSHOTS=docs makes docs/learning-curves.png of that folder's stages."""
    folder = os.environ.get("SIIMCOVID_METRICS", run.folder / "weights")
    path = Path(os.environ.get("SIIMCOVID_SCREENSHOTS", tmp_path), "learning-curves.png")
    figures.learning_curves(folder).savefig(path, dpi=100)
    assert 10_000 < path.stat().st_size < 300_000


def test_stages_in_the_order_of_training_and_damage_by_name(tmp_path):
    for stage in ("study", "other", "backbone"):
        pd.DataFrame({"epoch": [1], "loss": [1.0], "learning_rate": [0.1], "metric": [None]}).to_csv(
            tmp_path / f"{stage}.metrics.csv", index=False
        )
    tables = figures.read_metrics(tmp_path)
    assert list(tables) == ["backbone", "study", "other"]
    assert curves_of(tables["study"]) == ["loss", "learning_rate"]
    (tmp_path / "rcnn.metrics.csv").write_text("epoch,loss\n1,many\n")
    with pytest.raises(InputError, match=r"rcnn\.metrics\.csv"):
        figures.read_metrics(tmp_path)


def test_times_planned_and_measured():
    axis = figures.step_times({"fit": 60.0, "submit": 0.5}, {"fit": 80.0, "detect": 9.0}).axes[0]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["fit", "submit", "detect"]
    assert [patch.get_width() for patch in axis.patches] == [60, 0.5, 0, 80, 0, 9]
    assert texts(axis) == ["1 min 0 s", "0.5 s", "not run"]


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (None, "not run"),
        (0.04, "0.0 s"),
        (9.96, "10.0 s"),
        (59.7, "1 min 0 s"),
        (200, "3 min 20 s"),
        (7500, "2 h 05 min"),
    ],
)
def test_seconds_as_people_write_them(seconds, said):
    assert spell_seconds(seconds) == said


def test_gallery_draws_truth_and_scores(run):
    images = run.index[run.index["image_id"].isin(["found"])]
    truth = pd.DataFrame({"image_id": ["found"], "boxes": [IMAGES["found"][1]]})
    axes = figures.gallery(run.cache, images, run.detections, truth).axes
    assert [axis.get_title() for axis in axes] == ["truth", "rcnn", "yolo", "ensemble"]
    assert [len(axis.patches) for axis in axes] == [2, 2, 2, 2]
    assert to_hex(axes[1].patches[0].get_edgecolor()) == figures.COLOURS["rcnn"]
    assert axes[0].patches[0].get_xy() == pytest.approx((10, 16))
    assert texts(axes[1]) == ["0.90", "0.80"]


def test_svg_follows_the_page(evaluations):
    figure = figures.f1_curves(evaluations)
    svg = inline(figure, "f1", 'F1 < 1 & "more"')
    assert svg.startswith("<svg ")
    assert 'role="img" aria-label="F1 &lt; 1 &amp; &#34;more&#34;"' in svg
    assert "currentColor" in svg
    assert "var(--rcnn)" in svg
    assert INK not in svg
    assert "<dc:date" not in svg
    assert "DejaVu" not in svg
    ids = re.findall(r' id="([^"]+)"', svg)
    assert ids
    assert all(name.startswith("f1-") for name in ids)
    assert len(ids) == len(set(ids))
    assert inline(figures.f1_curves(evaluations), "f1", 'F1 < 1 & "more"') == svg
