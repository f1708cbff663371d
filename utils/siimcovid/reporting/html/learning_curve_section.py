"""The section about how the scores grow with the number of train images, of several runs on the same test images.

In: a folder with a run's folder for each number. Out: a section with a table and a picture.
"""

import json
from pathlib import Path

import pandas as pd

from siimcovid.core.labels import STUDY_LABELS
from siimcovid.data.competition import read_index
from siimcovid.reporting import figures
from siimcovid.reporting.html.inline_svg import inline
from siimcovid.reporting.html.page_blocks import Beside, Note, Picture, Pictures, Section, number_table
from siimcovid.reporting.run_folder import ENSEMBLE

SCORES = ["study labels", "none", "opacity", "mean"]


def learning_curve_section(folder: Path) -> Section:
    """The ensemble's scores of the runs in a folder, by their annotated train images."""
    table = learning_curve(folder)
    if table.empty:
        return Section("learning", "Learning curve", [Note("The folder of runs holds no run with scores.")])
    shown = table.assign(run=[f"{name} ({n:,} images)" for name, n in zip(table.index, table["images"], strict=True)])
    note = "The ensemble's average precision; study labels: the mean of the four. Compare runs on the same test images."
    numbers = number_table("Scores by the number of train images", shown.set_index("run")[SCORES], note, "run")
    alt = f"Scores over {table['images'].min():,} to {table['images'].max():,} train images"
    picture = Picture(inline(figures.scores_by_images(table[["images", *SCORES]]), "learning", alt))
    return Section("learning", "Learning curve", [Beside(numbers, Pictures([picture]))])


def learning_curve(folder: Path) -> pd.DataFrame:
    """A row for each run with scores, by the name of its folder: images, and SCORES; sorted by images."""
    rows = {}
    for path in sorted(Path(folder).glob("*/scores.json")):
        scores = json.loads(path.read_text(encoding="utf-8")).get(ENSEMBLE)
        index = path.with_name("index.csv")
        if scores is None or not index.is_file():
            continue
        known = {name: float("nan") if value is None else value for name, value in scores.items()}
        images = read_index(index)
        study = pd.Series([known[name] for name in STUDY_LABELS]).mean()  # of those that the truth has
        count = int(((images["split"] == "train") & images["annotated"]).sum())
        rows[path.parent.name] = {"images": count, "study labels": study, **{n: known[n] for n in SCORES[1:]}}
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["images", *SCORES])
    return table.sort_values("images", kind="stable")
