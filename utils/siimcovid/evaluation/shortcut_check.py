"""Shortcut check: the study model's score on images as they are and with their markers and borders covered.

The report names shortcuts as a risk (section 2.3, after DeGrave, Janizek and Lee 2021): hospitals burn in their own
markers at their own place, and their borders differ; where a hospital sent mostly one study label, the marker predicts
it. `data.cover_markers.cover` removes borders and markers from an image, and `compare` measures how much the score
falls. After a large fall the score cannot be trusted on images of another hospital. A small one is no proof: what is
not covered, as black letters on a white disc, a frame wider than cover_markers.BORDER or the patient's position, may
still be a shortcut; and part of a fall comes from covered images being unlike those of training, and from the chest
within the margin.

Out: shortcuts.json: {"studies": their number, "as they are", "covered" and "fall": {study label or "mean": average
precision, null where no study has the study label}}.
"""

from pathlib import Path

import pandas as pd

from siimcovid.core.files import nan_to_null, write_json
from siimcovid.core.labels import STUDY_LABELS
from siimcovid.evaluation.mean_average_precision import study_precisions


def compare(as_they_are: pd.DataFrame, covered: pd.DataFrame, truth: pd.Series) -> dict:
    """What shortcuts.json holds, of the studies that both tables and the truth know.

    The tables are those of predictor.study_probabilities; truth: study_id -> study label.
    """
    known = set(covered["study_id"]) & set(truth.index[truth.isin(STUDY_LABELS)])
    tables = {"as they are": as_they_are, "covered": covered}
    tables = {name: table[table["study_id"].isin(known)] for name, table in tables.items()}
    scores = {name: study_precisions(table, truth) for name, table in tables.items()}
    scores["fall"] = {
        study_label: value - scores["covered"][study_label] for study_label, value in scores["as they are"].items()
    }
    return {"studies": len(tables["as they are"]), **nan_to_null(scores)}


def record(found: dict, path: Path) -> str:
    """Write the result of `compare` as JSON, and return it in two lines of text."""
    write_json(path, found)
    whole, covered, fall = (found[key] for key in ("as they are", "covered", "fall"))
    if fall["mean"] is None:
        return "no study score, and no fall of it with markers and borders covered: no study has a study label"
    falls = ", ".join(
        f"{study_label} {value:+.3f}"
        for study_label, value in fall.items()
        if study_label != "mean" and value is not None
    )
    return (
        f"study score {whole['mean']:.3f}, with markers and borders of the images covered {covered['mean']:.3f}: "
        f"a fall of {fall['mean']:.3f} over {found['studies']} studies\n({falls})"
    )
