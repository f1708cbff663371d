"""A week's schedule as text: what each session runs, where and when, and what it is given and leaves.

In: a Schedule (week_schedule.py) and the throughputs behind it. Out: lines of tables for the prompt.
"""

from collections.abc import Mapping, Sequence

from siimcovid.core.configuration import Preset
from siimcovid.core.stage_names import stage_of
from siimcovid.kernel.gpu_throughput import Throughput
from siimcovid.kernel.week_schedule import Entry, Limits, Schedule, Session


def schedule_lines(preset: Preset, limits: Limits, speed: Mapping[str, Throughput], schedule: Schedule) -> list[str]:
    """The whole: assumed speeds, the jobs of each session, and the sessions with their inputs and what they submit."""
    gpus = f"{limits.gpus} GPU{'s' * (limits.gpus > 1)}"
    lines = [
        f"Preset {preset.name} on {gpus}, sessions of {limits.hours:g} hours at most.",
        "",
        *_table(
            ("stage", "trains, images/s", "predicts, images/s", "GPU hours", "these are"), _speeds(speed, schedule)
        ),
        "",
        *_table(("session", "where", "what", "data", "epochs", "from h", "to h"), _entries(schedule)),
        "",
        *_table(
            ("session", "kind", "hours", "HOURS", "models ready", "paused"),
            [_row(s, limits) for s in schedule.sessions],
        ),
        "",
    ]
    for session in schedule.sessions:
        lines += [f"Session {session.number}: attach {', '.join(session.mounts)}.", f"  {_leaves(session)}"]
        lines += [f"    {command}" for command in _commands(preset, schedule, session)]
    if limits.pretrains:
        names = {getattr(preset, stage).backbone or preset.yolo.architecture for stage in preset.stages}
        lines += ["", f"FOLDER holds the weights to start from: siimcovid weights import {'|'.join(sorted(names))} …"]
    if schedule.left:
        lines += ["", f"{schedule.left:.1f} GPU hours of training find no place: give more --sessions."]
    hours = sum(session.hours for session in schedule.sessions if session.kind != "submission")
    lines += ["", f"Together {hours:.1f} hours until the last training has ended; Kaggle gives about 30 a week."]
    if not all(one.measured for one in speed.values()):
        lines.append("Hours from estimated speeds are estimates: --profile takes what the smoke kernel measured.")
    return lines


def _speeds(speed: Mapping[str, Throughput], schedule: Schedule) -> list[Sequence[str]]:
    hours = schedule.gpu_hours()
    rows = []
    for stage, one in speed.items():
        needed, source = f"{hours[stage]:.1f}" if stage in hours else "", "measured" if one.measured else "estimates"
        rows.append((stage, f"{one.train:.1f}", f"{one.predict:.1f}", needed, source))
    return rows


def _entries(schedule: Schedule) -> list[Sequence[str]]:
    return [
        (str(s.number), e.place, _job(e), e.data, _epochs(e), f"{e.begin:.1f}", f"{e.end:.1f}")
        for s in schedule.sessions
        for e in s.entries
    ]


def _job(entry: Entry) -> str:
    """ "rcnn, fold 1" for the model rcnn.1 of a fold ensemble."""
    if entry.data != "the competition":
        return entry.job
    stage = stage_of(entry.job)
    return f"{stage}, fold {entry.job.removeprefix(stage).strip('.') or 0}"


def _epochs(entry: Entry) -> str:
    """ "1-12 of 12", and whether it pauses then or went on."""
    if entry.epochs is None:
        return ""
    first, last, whole = entry.epochs
    return f"{first}-{last} of {whole}{', goes on' if first > 1 else ''}{', pauses' if last < whole else ''}"


def _row(session: Session, limits: Limits) -> Sequence[str]:
    training, submission = f"{min(session.setting, limits.hours):g}", f"{limits.hours:g}"
    setting = {"pretraining": "", "training": training, "submission": submission}[session.kind]
    return (
        str(session.number),
        session.kind,
        f"{session.hours:.1f}",
        setting,
        str(len(session.ready)),
        ", ".join(session.paused),
    )


def _leaves(session: Session) -> str:
    """What a session submits, and what there is of it for those to come."""
    if session.kind == "pretraining":
        return "Submits nothing; its weights are what the next sessions start from."
    if session.kind == "submission":
        return "MODE infer: this one is submitted to the hidden test set."
    used = len(session.ready) + len(session.paused)
    return f"MODE finetune: submission.csv with the {used} models that there are, paused ones among them."


def _commands(preset: Preset, schedule: Schedule, session: Session) -> list[str]:
    """What to type at home for a session: its kernel is built and pushed."""
    if session.kind == "submission":
        return ["make push SUBMIT=1; make kaggle-submit SUBMIT=1"]
    alike = [one.number for one in schedule.sessions if one.kind == session.kind]
    number, weights = alike.index(session.number) + 1, "FOLDER"
    which, planned = f"PRETRAIN={number}", ""
    if session.kind == "training":
        which, planned = f"SESSION={number}", f" SESSIONS={len(alike)}"
        weights = "FOLDER" if any(one.kind == "pretraining" for one in schedule.sessions) else "PRETRAINED"
    return [f"make kaggle {which}{planned} PRESET={preset.name} WEIGHTS={weights}; make push {which}"]


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table whose columns are as wide as their longest text."""
    rows = [titles, *rows]
    widths = [max(len(row[k]) for row in rows) for k in range(len(titles))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return [lines[0], "  ".join("-" * width for width in widths), *lines[1:]]
