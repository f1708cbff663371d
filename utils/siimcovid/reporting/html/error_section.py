"""The sections about what went wrong and how the models were combined: the worst images, and the choices there were.

In: a RunFolder. Out: sections of tables; no image is shown.
"""

from pathlib import Path

import pandas as pd

from siimcovid.core.labels import CLASSES
from siimcovid.evaluation.worst_errors import worst_errors
from siimcovid.reporting.html.page_blocks import Note, Section, Table, number_table
from siimcovid.reporting.run_folder import ENSEMBLE, RunFolder


def error_section(run: RunFolder) -> list[Section]:
    """The ten images that the ensemble gets most wrong; none without ground truth or predictions."""
    if run.ground_truth is None or run.detections is None or run.index is None or run.study_probs is None:
        return []
    tests = run.index[run.index["split"] == "test"]
    sizes = {name: size for name, *size in tests[["image_id", "rows", "columns"]].itertuples(index=False)}
    table = worst_errors(
        run.detections[run.detections["model"] == ENSEMBLE],
        run.ground_truth.boxes(sizes),
        run.study_probs,
        run.ground_truth.study_labels(),
        dict(zip(tests["image_id"], tests["study_id"], strict=True)),
    )
    if table.empty:
        return [Section("errors", "Worst errors", [Note("The ensemble makes no error worth naming.")])]
    rows = [[name, f"{badness:.2f}", errors] for name, badness, errors in table.itertuples(index=False)]
    note = (
        "The sum of 1 - the confidence of each true box (1 for a missed one), the confidence of the surest false box, "
        "and the probability by which a wrong study label leads the true one. Boxes match at IoU above 0.5."
    )
    return [Section("errors", "Worst errors", [Table("", ["image", "sum", "what went wrong"], rows, note)])]


def ensemble_section(run: RunFolder) -> list[Section]:
    """Where the numbers that combine the models come from, and the choices there were; none of an older run."""
    facts = run.facts.get("ensemble")
    if not isinstance(facts, dict) or "source" not in facts:
        return []
    source = str(facts["source"])
    source = Path(source).name if source.endswith(".json") else source  # no folder of this machine on the page
    blocks: list = [Note(f"The numbers that combine the models come from: {source}.")]
    if choices := facts.get("choices"):
        numbers = pd.DataFrame(choices).T.reindex(columns=[*CLASSES, "mean"]).astype(float)
        left_out = ", ".join(facts.get("left_out") or []) or "none"
        note = (
            f"Chosen: {facts.get('choice')}; detectors left out of the fusion: {left_out}. Average precision on "
            f"{facts.get('images')} images that no model was trained on, by numbers fitted without their part of them."
        )
        blocks.append(number_table("Ways to combine the models", numbers, note, best="column"))
    if items := facts.get("items"):
        rows = [[i["item"], _gain(i["gain"]), "kept" if i["kept"] else "left out"] for i in items]
        blocks.append(Table("What each fitted item gained", ["item", "gain in the mean", ""], rows))
    return [Section("ensemble", "Ensemble", blocks)]


def _gain(value: float | None) -> str:
    return "–" if value is None else f"{value:+.3f}"
