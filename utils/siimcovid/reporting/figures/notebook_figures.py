"""What the notebook shows inline: tables and figures of the configuration, the data, the training and the scores.

In: the run, and what its steps returned. Out: shown by IPython. The functions `show_*` are steps of the run: where one
fails, that is recorded and the notebook goes on without its figures.
"""

from pathlib import Path

import pandas as pd
from IPython.display import display
from matplotlib.figure import Figure

from siimcovid.core.labels import STUDY_LABELS
from siimcovid.data import dataset_statistics, image_cache
from siimcovid.evaluation import report_tables
from siimcovid.kernel.run import Run
from siimcovid.kernel.scoreboard import true_boxes
from siimcovid.kernel.write_submissions import ENSEMBLE, submission_file
from siimcovid.reporting.figures.dataset_figures import (
    box_count_chart,
    box_position_map,
    box_size_histogram,
    tally_chart,
)
from siimcovid.reporting.figures.figure_style import TRUTH
from siimcovid.reporting.figures.image_figures import gallery
from siimcovid.reporting.figures.score_figures import calibration, confusion, f1_curves, precision_recall
from siimcovid.reporting.figures.training_figures import learning_curves, step_times
from siimcovid.reporting.run_folder import evaluate_run, read_run


def configuration_table(run: Run) -> pd.DataFrame:
    """A row per stage that runs: network, sides in pixels, epochs, batch, learning rate; the rest in the caption."""
    rows = {}
    for stage in run.preset.stages:
        config = getattr(run.preset, stage)
        rows[stage] = {
            "network": getattr(config, "architecture", "") or config.backbone,
            "trained at": f"{config.size} px",
            "predicts at": f"{config.infer_size} px",
            "epochs": config.training.epochs,
            "batch": config.training.nominal_batch or config.training.batch,
            "optimizer": config.training.optimizer,
            "learning rate": f"{config.training.learning_rate:g}",
        }
        if run.mode == "infer":
            for name in ("trained at", "epochs", "batch", "optimizer", "learning rate"):
                del rows[stage][name]
    return pd.DataFrame(rows).T


def show_configuration(run: Run) -> None:
    """The run's parameters in a line, and what each stage is."""
    with run.recovery.recover("configuration", "no table of the configuration"):
        print(
            f"preset {run.preset.name}, mode {run.mode}, {run.budget.hours:g} hours, seed {run.preset.seed}, "
            f"{len(run.parameters.overrides)} overrides"
        )
        print(f"competition {run.inputs.source}, weights {run.inputs.weights or 'none'}, output {run.folder}")
        display(configuration_table(run))


def show_data(run: Run) -> None:
    """Counts of the index, the distribution of study labels and boxes, and sample images with their boxes."""
    with run.step("data", "no figures of the data"):
        images = run.competition.images
        print(*run.competition.problems or ["Every id has its image, and every image its id."], sep="\n")
        display(images.groupby("split")[["study_id", "image_id", "patient_id"]].nunique())
        display(*data_charts(images))
        if (samples := sample_images(run)) is not None:
            display(samples)


def sample_images(run: Run, count: int = 4) -> Figure | None:
    """An image of each study label of the train part with its boxes, else test images; None without any.

    The images are prepared for it, and stay in the cache.
    """
    images = run.competition.images
    train = images[(images["split"] == "train") & images["study_label"].isin(STUDY_LABELS)]
    most = train["boxes"].map(len).sort_values(ascending=False, kind="stable").index  # those with boxes before others
    chosen = train.loc[most].drop_duplicates("study_label") if len(train) else images.head(count)
    failed = image_cache.prepare(chosen, run.cache, run.preset.cache_size)["image_id"]
    chosen = chosen[~chosen["image_id"].isin(failed)]
    if chosen.empty:
        return None
    truth = chosen[["image_id", "boxes"]].assign(boxes=chosen["boxes"].map(lambda boxes: list(boxes or [])))
    no_detections = pd.DataFrame({"image_id": [], "model": [], "score": []})
    return gallery(run.cache, chosen, no_detections, truth, models=[TRUTH], across=True)


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


def show_preparation(run: Run, failures: pd.DataFrame) -> None:
    """How many images were prepared, and tables of those that could not be and of what was noticed of the others."""
    print(f"{len(run.prepared_images)} images prepared, {len(failures)} could not be")
    for table in (failures, run.record.notices):
        if len(table):
            display(table.head(20))


def show_training(run: Run, models: pd.DataFrame) -> None:
    """The trained or loaded models, and the learning curves where this run trained."""
    display(models)
    if run.mode == "finetune":
        with run.step("curves", "no learning curves"):
            display(learning_curves(run.folder / "weights"))


def show_detections(run: Run, detections: pd.DataFrame) -> None:
    """Boxes per model, and a few test images with the truth (where it is at hand), each detector and the ensemble."""
    display(detections.groupby("model")["score"].agg(["count", "mean", "max"]))
    with run.step("gallery", "no images with boxes"):
        found = detections[detections["model"] == ENSEMBLE]
        order = found.groupby("image_id")["score"].max().sort_values(ascending=False)
        sure = order.index[: max(1, len(order) // 2)]
        shown = run.test[run.test["image_id"].isin(sure)].head(4)
        if len(shown):
            figure = gallery(run.cache, shown, detections, true_boxes(run))
            figure.savefig(run.folder / "gallery.png", dpi=110)
            display(figure)


def show_study_probabilities(study_probs: pd.DataFrame) -> None:
    """Mean, spread and range of each study label's probability over the studies."""
    display(study_probs[list(STUDY_LABELS)].astype(float).describe().loc[["mean", "std", "min", "max"]].round(3))


def show_submission(run: Run, rows: int = 5) -> None:
    """The tail of submission.csv, long strings cut."""
    with run.recovery.recover("submission", "the tail of the submission is not shown"):
        tail = pd.read_csv(submission_file(run, ENSEMBLE), dtype=str, keep_default_na=False).tail(rows)
        cut = tail["PredictionString"].map(lambda text: text if len(text) <= 90 else f"{text[:90]} …")
        print(tail.assign(PredictionString=cut).to_string(index=False, max_colwidth=95))


def show_scores(run: Run, scoreboard: pd.DataFrame | None) -> None:
    """The scoreboard, the report's tables and curves; a sentence where the ground truth is not at hand."""
    if scoreboard is None:
        print("No ground truth lies beside the competition, so there is no score: Kaggle computes it.")
        return
    display(scoreboard.round(3))
    with run.step("figures", "no figures of the scores"):
        display(*evaluation_charts(run.folder))


def show_times(run: Run) -> None:
    """The time budget as a chart: seconds of each step, measured and planned, and the hours that are left."""
    with run.recovery.recover("times", "no chart of the times"):
        spent, hours = run.budget.spent(), run.budget.hours
        print(f"{spent:.0f} s of {hours:g} hours used ({spent / 36 / hours:.0f} %)")
        display(step_times(run.record.seconds, run.record.predicted))


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
