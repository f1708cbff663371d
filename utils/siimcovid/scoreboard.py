"""The scoreboard of a run, where the held-back answers lie beside the competition: see answers.py.

Out: scores.json, for each detector and the ensemble the six average precisions and their mean; and shortcuts.json, what
of the study model's score is left on films without markers and borders (see shortcuts.py).
"""

import math

import pandas as pd

from siimcovid import CLASSES, evaluate, metric, submission
from siimcovid.answers import find_answers, read_answers
from siimcovid.files import write_json
from siimcovid.run import Run


def score(run: Run, submissions: dict) -> pd.DataFrame | None:
    """A row per model: six APs, their mean, and the report's Table 1; None where no answers lie at hand.

    submissions: model -> the path of its submission.
    """
    folder = find_answers(run.source)
    if folder is None:
        return None
    answers = read_answers(folder)
    scores, boxes = {}, {}
    for model, path in submissions.items():
        said = submission.read_table(path, ("id", "PredictionString"))
        matches = metric.match_classes(metric.compare(said, answers.images, answers.studies))
        scores[model] = metric.average_precisions(matches)
        boxes[model] = evaluate.box_figures(matches["opacity"], threshold=evaluate.THRESHOLD)
    known = {m: {k: None if math.isnan(v) else v for k, v in row.items()} for m, row in scores.items()}
    write_json(run.folder / "scores.json", known)  # a class without truth has no AP
    table = pd.DataFrame(scores).T[[*CLASSES, "mean"]]
    return table.join(pd.DataFrame(boxes).T.drop(columns="mAP@.50"))


def check_shortcuts(run: Run) -> None:
    """Print how much the study score falls when markers and borders are covered, and write shortcuts.json.

    Nothing is done without answers, without levels of the study model, or without the time to look at the films again.
    That time is not planned, so that nothing of the submission is dropped for it: the check takes what is left over.
    """
    folder = find_answers(run.source)
    if folder is None or run.film_levels is None:
        return
    from siimcovid import inference, shortcuts
    from siimcovid.predict import study_levels

    covered = inference.classify_covered(run)
    if covered is not None and len(covered):
        truth = pd.Series(read_answers(folder).levels())
        compared = shortcuts.compare(study_levels(run.film_levels), covered, truth)
        print(shortcuts.record(compared, run.folder / "shortcuts.json"))


def true_boxes(run: Run) -> pd.DataFrame | None:
    """The held-back boxes of the test films as fractions: image_id, boxes; None where there are no answers."""
    folder = find_answers(run.source)
    if folder is None:
        return None
    sizes = run.test.set_index("image_id")[["rows", "columns"]]
    boxes = read_answers(folder).boxes(dict(zip(sizes.index, sizes.itertuples(index=False, name=None), strict=True)))
    return pd.DataFrame(boxes.items(), columns=["image_id", "boxes"])
