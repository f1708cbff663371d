"""The figures that the notebook shows inline: those of the report page, of the data and of the scores.

In: the index, or a run's folder. Out: matplotlib Figures; none where there is nothing to draw.
"""

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from siimcovid.data import dataset_statistics
from siimcovid.evaluation import report_tables
from siimcovid.reporting.figures.dataset_figures import (
    box_count_chart,
    box_position_map,
    box_size_histogram,
    tally_chart,
)
from siimcovid.reporting.figures.score_figures import calibration, confusion, f1_curves, precision_recall
from siimcovid.reporting.run_folder import evaluate_run, read_run


def data_charts(images: pd.DataFrame) -> list[Figure]:
    """Study labels, boxes per image, and the sizes and positions of the boxes of an index's train split (report,
    figures 4 to 6); none without a train split."""
    train = images[images["split"] == "train"]
    if train.empty:
        return []
    counts = dataset_statistics.describe(train)
    return [
        tally_chart("Study labels of the studies", counts["study_labels"], "studies"),
        box_count_chart(counts["boxes_per_image"]),
        box_size_histogram(dataset_statistics.box_table(train["boxes"])),
        box_position_map(train["boxes"].tolist()),
    ]


def evaluation_charts(folder: Path | str) -> list[Figure | pd.DataFrame]:
    """Table 1 and Table 2 of the report and the curves behind them, for every model of a run's folder; none without
    ground truth, or before the run has finished."""
    evaluations = evaluate_run(read_run(folder))
    if not evaluations:
        return []
    return [
        report_tables.table_1(evaluations).round(3),
        report_tables.table_2(evaluations).round(3),
        precision_recall(evaluations),
        f1_curves(evaluations),
        confusion(evaluations[-1].study_labels["confusion"]),
        calibration(evaluations),
    ]
