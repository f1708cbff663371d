"""The sections about how a run went: learning curves, time of each step, what failed or was dropped, its settings."""

import json

from siimcovid.reporting import figures
from siimcovid.reporting.figures.training_figures import CURVES, curves_of, spell_seconds
from siimcovid.reporting.html.inline_svg import inline
from siimcovid.reporting.html.page_blocks import Beside, Details, Note, Picture, Pictures, Section, Table
from siimcovid.reporting.run_folder import RunFolder


def training_section(run: RunFolder) -> Section:
    """Loss with its parts, validation metric and learning rate of every stage that this run trained."""
    tables = figures.read_metrics(run.folder / "weights")
    if not tables:
        reason = "This run trained nothing: it took its models from a weights folder (MODE infer)."
        if run.facts.get("mode") != "infer":
            reason = "No stage has finished an epoch yet."
        return Section("training", "Training", [Note(reason)])
    blocks = []
    for stage, table in tables.items():
        pictures = [
            Picture(inline(figures.stage_curve(stage, table, curve), f"{stage}-{curve}", _alt(stage, table, curve)))
            for curve in curves_of(table)
        ]
        seconds = float(table["seconds"].sum()) if "seconds" in table else 0.0
        blocks.append(Pictures(pictures, f"{stage}: {len(table)} epochs in {spell_seconds(seconds)}"))
    if not any("metric" in curves_of(table) for table in tables.values()):
        blocks.append(Note("No stage was validated while it trained, so the last epoch was kept."))
    return Section("training", "Training", blocks)


def _alt(stage: str, table, curve: str) -> str:
    first, last = table[curve].dropna().iloc[[0, -1]]
    return f"{CURVES[curve]} of {stage} over {len(table)} epochs, from {first:.3g} to {last:.3g}"


def time_section(run: RunFolder) -> Section:
    """Seconds of each step, beside the plan where run.json has one."""
    seconds: dict[str, float] = run.facts.get("seconds") or {}
    plan = [row for row in run.facts.get("steps") or [] if row.get("predicted_seconds") is not None]
    planned = {row["step"]: float(row["predicted_seconds"]) for row in plan}
    if not seconds:
        return Section("time", "Time", [Note("No step has finished yet.")])
    total = spell_seconds(sum(seconds.values()))
    lead = f"{total} in all"
    if predicted := (run.facts.get("total") or {}).get("predicted_seconds"):
        lead += f", where {spell_seconds(predicted)} were planned"
    if hours := run.facts.get("hours"):
        lead += f"; the run was given {hours:g} hours"
    picture = Picture(inline(figures.step_times(seconds, planned), "times", f"Seconds of each step; {total} in all"))
    pictures = Pictures([picture])
    blocks: list = [pictures]
    if planned:
        steps = [*seconds, *(step for step in planned if step not in seconds)]
        rows = [[s, _spell(planned.get(s)), spell_seconds(seconds.get(s)), _ratio(seconds, planned, s)] for s in steps]
        table = Table("Planned and measured", ["step", "planned", "measured", "measured / planned"], rows)
        blocks = [Beside(table, pictures)]
    return Section("time", "Time", blocks, lead + ".")


def _spell(seconds: float | None) -> str:
    return "–" if seconds is None else spell_seconds(seconds)


def _ratio(seconds: dict[str, float], planned: dict[str, float], step: str) -> str:
    return f"{seconds[step] / planned[step]:.2f}" if step in seconds and planned.get(step) else "–"


def trouble_section(run: RunFolder) -> Section:
    """What was degraded, dropped, did not fit or could not be read."""
    facts, blocks = run.facts, []
    if not run.finished:
        last = next(reversed(facts.get("seconds") or {}), "none")
        blocks.append(Note(f"The run has not come to its submissions; its last finished step: {last}.", warning=True))
    for row in facts.get("degraded") or []:
        message = f"{row.get('step', '?')} failed: {row.get('reason', '?')}. Instead: {row.get('fallback', '?')}."
        blocks.append(Note(message, warning=True))
        if row.get("traceback"):
            blocks.append(Details(f"Traceback of {row.get('step', '?')}", str(row["traceback"]).splitlines()))
    for choice in facts.get("dropped") or []:
        blocks.append(Note(f"Dropped to fit the hours: {choice}", warning=True))
    if problems := facts.get("problems") or []:
        blocks.append(Details(f"What did not fit in the competition folder: {len(problems)}", list(map(str, problems))))
    if failures := facts.get("failures") or []:
        rows = [[str(row.get("image_id", "?")), str(row.get("reason", "?"))] for row in failures]
        note = "Their rows in the submission are the train set's frequencies."
        blocks.append(Table(f"Images that could not be read: {len(rows)}", ["image", "reason"], rows, note))
    if notices := facts.get("notices") or []:
        rows = [[str(row.get("image_id", "?")), str(row.get("notice", "?"))] for row in notices]
        note = "They were read, with this of their files ignored or mended, or found by the study model."
        blocks.append(Table(f"Images that may not show what was meant: {len(rows)}", ["image", "notice"], rows, note))
    if not blocks:
        blocks.append(Note("Nothing: no step failed, nothing was dropped, and every image could be read."))
    return Section("trouble", "What went wrong", blocks)


def settings_section(run: RunFolder) -> Section:
    """The run's whole configuration."""
    preset = run.facts.get("preset")
    if not preset:
        return Section("settings", "Settings", [Note("run.json has no configuration.")])
    lines = json.dumps(preset, indent=2).splitlines()
    return Section("settings", "Settings", [Details(f"The preset {preset.get('name', '?')}, every number", lines)])
