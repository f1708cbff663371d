"""The scoreboard of a run, where the ground truth lies beside the competition: see ground_truth.py.

Out: scores.json, for each detector and the ensemble the six average precisions and their mean; and shortcuts.json, what
of the study model's score is left on images without markers and borders (see shortcut_check.py).
"""

import pandas as pd

from siimcovid.core.files import nan_to_null, write_json
from siimcovid.core.labels import CLASSES
from siimcovid.evaluation import mean_average_precision, report_tables, submission_csv
from siimcovid.evaluation.ground_truth import find_ground_truth, read_ground_truth
from siimcovid.kernel.run import Run


def score(run: Run, submissions: dict) -> pd.DataFrame | None:
    """A row per model: six APs, their mean, and the report's Table 1; None where no ground truth lies at hand.

    submissions: model -> the path of its submission.
    """
    folder = find_ground_truth(run.inputs.source)
    if folder is None:
        return None
    truth = read_ground_truth(folder)
    scores, boxes = {}, {}
    for model, path in submissions.items():
        outputs = submission_csv.read_table(path, ("id", "PredictionString"))
        matches = mean_average_precision.match_classes(
            mean_average_precision.compare(outputs, truth.images, truth.studies)
        )
        scores[model] = mean_average_precision.average_precisions(matches)
        boxes[model] = report_tables.box_figures(matches["opacity"], threshold=report_tables.THRESHOLD)
    write_json(run.folder / "scores.json", nan_to_null(scores))  # a class without truth has no AP: null
    table = pd.DataFrame(scores).T[[*CLASSES, "mean"]]
    return table.join(pd.DataFrame(boxes).T.drop(columns="mAP@.50"))


def check_shortcuts(run: Run) -> None:
    """Print how much the study score falls when markers and borders are covered, and write shortcuts.json.

    Nothing is done without ground truth, without study probabilities, or without the time to predict the images again.
    That time is not planned, so that nothing of the submission is dropped for it: the check takes what is left
    over.
    """
    folder = find_ground_truth(run.inputs.source)
    if folder is None or run.predictions.image_study_probs is None:
        return
    from siimcovid.evaluation import shortcut_check
    from siimcovid.inference.predictor import study_probabilities
    from siimcovid.kernel import predict_test_images

    covered = predict_test_images.classify_covered(run)
    if covered is not None and len(covered):
        truth = pd.Series(read_ground_truth(folder).study_labels())
        compared = shortcut_check.compare(study_probabilities(run.predictions.image_study_probs), covered, truth)
        print(shortcut_check.record(compared, run.folder / "shortcuts.json"))


def true_boxes(run: Run) -> pd.DataFrame | None:
    """The held-back boxes of the test images as fractions: image_id, boxes; None without ground truth."""
    folder = find_ground_truth(run.inputs.source)
    if folder is None:
        return None
    sizes = run.test.set_index("image_id")[["rows", "columns"]]
    boxes = read_ground_truth(folder).boxes(
        dict(zip(sizes.index, sizes.itertuples(index=False, name=None), strict=True))
    )
    return pd.DataFrame(boxes.items(), columns=["image_id", "boxes"])
