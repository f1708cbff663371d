"""The page: sections of a run, of a data set or of both, in one HTML file that loads nothing."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from siimcovid.core.errors import InputError
from siimcovid.core.labels import STUDY_LABELS
from siimcovid.evaluation.report_tables import THRESHOLD, Evaluation
from siimcovid.reporting.figures.training_figures import spell_seconds
from siimcovid.reporting.html.dataset_section import data_section
from siimcovid.reporting.html.error_section import ensemble_section, error_section
from siimcovid.reporting.html.example_gallery import example_groups
from siimcovid.reporting.html.learning_curve_section import learning_curve_section
from siimcovid.reporting.html.page_blocks import Note, Section
from siimcovid.reporting.html.score_sections import model_name, no_scores, recorded_scores, result_sections
from siimcovid.reporting.html.training_sections import settings_section, time_section, training_section, trouble_section
from siimcovid.reporting.run_folder import RunFolder, evaluate_run

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Page:
    """All that the template shows."""

    title: str
    lead: str
    banners: Sequence[str]
    cards: Sequence[tuple[str, str]]  # a figure and what it is
    sections: Sequence[Section]


def run_page(
    run: RunFolder,
    images: pd.DataFrame | None = None,
    nih: Path | None = None,
    rsna: Path | None = None,
    threshold: float = THRESHOLD,
    runs: Path | None = None,
) -> Page:
    """The page of a run; images: an index for the data section, the run's own by default. runs: a folder of runs, for a
    learning curve."""
    evaluations, results = _results(run, threshold)
    sections = [*results, *error_section(run), *_gallery(run), *ensemble_section(run)]
    sections += [learning_curve_section(runs)] if runs else []
    sections += [training_section(run), time_section(run), trouble_section(run)]
    sections += [data_section(run.index if images is None else images, nih, rsna), settings_section(run)]
    banners = ["Research software. Not a medical device, not for diagnosis."]
    if run.ground_truth is not None and run.ground_truth.synthetic:
        banners.append("The images are synthetic: the figures say that the system works, not how well on patients.")
    facts = run.facts
    preset = (facts.get("preset") or {}).get("name", "?")
    lead = f"Preset {preset}, mode {facts.get('mode', '?')}."
    return Page(f"Run {run.folder.name}", lead, banners, _cards(run, evaluations), sections)


def data_page(name: str, images: pd.DataFrame | None, nih: Path | None = None, rsna: Path | None = None) -> Page:
    """The page of a data set alone."""
    banners = ["Research software. Not a medical device, not for diagnosis."]
    return Page(f"Data of {name}", "", banners, [], [data_section(images, nih, rsna)])


def _results(run: RunFolder, threshold: float) -> tuple[list[Evaluation], list[Section]]:
    if not run.finished:
        reason = "This run has not come to its submissions; submission.csv holds the train set's frequencies so far."
        return [], [no_scores(reason)]
    if run.ground_truth is None:
        recorded = run.folder / "scores.json"
        if recorded.is_file():
            table = recorded_scores(json.loads(recorded.read_text(encoding="utf-8")))
            return [], [Section("scores", "Official score", [table])]
        reason = "No ground truth lies beside the competition; name its folder with --ground-truth to score the run."
        return [], [no_scores(reason)]
    try:
        evaluations = evaluate_run(run, threshold)
    except InputError as error:
        return [], [no_scores(f"The submissions and the ground truth do not fit: {error}")]
    if not evaluations:
        return [], [no_scores("The run's submissions are gone.")]
    return evaluations, result_sections(evaluations)


def _gallery(run: RunFolder) -> list[Section]:
    lead = (
        "Each image with the ground truth and the boxes of each model, with their confidence, from "
        f"{THRESHOLD:g} up. The ensemble's boxes chose the images."
    )
    groups = example_groups(run)
    if not groups:
        reason = "The run has detected nothing yet." if run.detections is None else "The prepared images are gone."
        return [Section("images", "Images", [Note(reason)])]
    return [Section("images", "Images", groups, lead)]


def _cards(run: RunFolder, evaluations: Sequence[Evaluation]) -> list[tuple[str, str]]:
    cards = []
    if evaluations:
        last = evaluations[-1]
        cards.append((f"{last.scores['mean']:.3f}", f"official score, {model_name(last.name)}"))
        cards.append((f"{last.scores['opacity']:.3f}", "average precision of opacity"))
        study_labels = sum(last.scores[name] for name in STUDY_LABELS) / len(STUDY_LABELS)
        cards.append((f"{study_labels:.3f}", "average precision of the study labels"))
    if run.index is not None:
        tests = run.index[run.index["split"] == "test"]
        cards.append((f"{len(tests):,}", f"test images of {tests['study_id'].nunique():,} studies"))
    if seconds := run.facts.get("seconds"):
        cards.append((spell_seconds(sum(seconds.values())), "in all"))
    return cards


def render(page: Page) -> str:
    """The page as HTML."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    return environment.get_template("report.html").render(page=page)
