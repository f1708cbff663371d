"""All contenders one after the other, for each number of minutes: `siimcovid bench --peers FOLDER`.

In: a competition folder with its ground truth beside it. Out, beside OUT (a path that ends in .json):

    OUT            "machine", "threads", "images" {train, test}, and "results", the fields of Result in a list; written
                   anew after each contender, and what stands there is not measured again
    OUT as .md     the same as a table
    <OUT>.peers/   the prepared images, the indexes, and a folder for each training with its log.txt
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from siimcovid.apps.ablation.ablation_data import AblationData, read
from siimcovid.apps.benchmarks.peers import CONTENDERS, IMAGENET, RANDOM
from siimcovid.apps.benchmarks.peers.peer_job import PeerJob, read_outcome, write_job
from siimcovid.apps.benchmarks.peers.plain_classifier import ARCHITECTURE
from siimcovid.apps.benchmarks.run_benchmarks import machine
from siimcovid.core.errors import InputError
from siimcovid.core.files import make_folder, nan_to_null, write_json, write_text
from siimcovid.core.presets import SMALL
from siimcovid.core.processes import inherited_path
from siimcovid.data import duplicates
from siimcovid.data.competition import write_index
from siimcovid.evaluation.mean_average_precision import study_precisions
from siimcovid.evaluation.prediction_scores import opacity_score, true_study_labels
from siimcovid.inference.predictor import study_probabilities
from siimcovid.models.published_weights import import_weights


@dataclass(frozen=True)
class Result:
    """What one training came to.

    Attributes:
        name: a key of CONTENDERS. start: the weights it started from.
        minutes: that it was given; trained_minutes: that its training took; epochs: how often it saw each image.
        score: opacity AP, or the mean AP of the study labels, on the test part; nan where it failed.
        train_speed, infer_speed: images a second by the clock.
        load: of the machine (processes that want a core, mean of a minute) when it had ended; it makes about one for
            each of its threads itself.
        failure: the last line of its log, "" where it went well.
    """

    name: str
    start: str
    minutes: float
    trained_minutes: float = 0.0
    epochs: float = 0.0
    score: float = float("nan")
    train_speed: float = 0.0
    infer_speed: float = 0.0
    load: float = 0.0
    failure: str = ""


def compare(
    competition: Path, out: Path, minutes: Sequence[float], threads: int, only: Sequence[str] = ()
) -> list[Result]:
    """Train and score the contenders named in `only` (all without it), print and write the table.

    minutes: of training, each a training of its own whose schedule ends there. threads: of every contender.
    Raises InputError for an unknown name, a time that is not above 0, a competition without ground truth, or an `out`
    that was measured on another machine, with other threads or on other images.
    """
    unknown = [name for name in only if name not in CONTENDERS]
    if unknown:
        raise InputError(f"no contender {unknown[0]!r}; choose from {', '.join(CONTENDERS)}")
    if min(minutes) <= 0 or threads < 1:
        raise InputError(f"{min(minutes):g} minutes and {threads} threads: give minutes above 0 and at least 1 thread")
    work = make_folder(out.with_name(f"{out.stem}.peers"))
    start = work / "imagenet"
    if not (start / f"{ARCHITECTURE}.safetensors").is_file():
        import_weights(ARCHITECTURE, None, start)
    data = read(competition, work, start, SMALL)
    images = write_indexes(data)
    facts: dict[str, Any] = {"machine": machine(), "threads": threads, "images": images}
    found = earlier_results(out, facts)
    for given in minutes:
        for name in CONTENDERS:
            if (not only or name in only) and (name, given) not in {(one.name, one.minutes) for one in found}:
                found.append(contend(name, data, given, threads, images["train"]))
                print(line(found[-1]), flush=True)
                write_json(out, {**facts, "results": nan_to_null([asdict(result) for result in found])})
                write_text(out.with_suffix(".md"), markdown(found))
    print(markdown(found))
    return found


def earlier_results(out: Path, facts: Mapping[str, Any]) -> list[Result]:
    """What an earlier call measured, without what failed there. Raises InputError where it was measured otherwise.

    facts: all that `out` holds but the results.
    """
    if not out.is_file():
        return []
    try:
        earlier = json.loads(out.read_text(encoding="utf-8"))
        results = [Result(**fields) for fields in earlier.pop("results")]
        changed = [key for key, value in facts.items() if _lasting(earlier[key]) != _lasting(value)]
    except (ValueError, TypeError, KeyError, AttributeError):
        changed, results = ["form"], []
    if changed:
        raise InputError(f"{out} has results of another {changed[0]}; move it away, or name another file by --out")
    return [result for result in results if not result.failure]


def _lasting(fact: Any) -> Any:
    """A fact without what changes from one minute to the next."""
    return {key: value for key, value in fact.items() if key != "load_before"} if isinstance(fact, dict) else fact


def write_indexes(data: AblationData) -> dict[str, int]:
    """Write the rows to train on and, without their truth, those to predict; returns how many they are."""
    train = duplicates.once(data.train[data.train["annotated"]], data.copies)
    write_index(train, data.folder / "train.csv")
    blind = data.test.assign(boxes=[[] for _ in range(len(data.test))], study_label=None)
    write_index(blind, data.folder / "test.csv")
    return {"train": len(train), "test": len(data.test)}


def contend(name: str, data: AblationData, minutes: float, threads: int, images: int) -> Result:
    """Let a contender train and predict in a process of its own, and score what it predicts. images: it trains on."""
    contender = CONTENDERS[name]
    job = PeerJob(
        name=name,
        out=make_folder(data.folder / f"{name}-{minutes:g}"),
        cache=data.cache,
        train=data.folder / "train.csv",
        test=data.folder / "test.csv",
        start=data.start if contender.start == IMAGENET else None,
        seconds=minutes * 60,
        threads=threads,
    )
    (job.out / "outcome.json").unlink(missing_ok=True)
    failure = run_child(job)
    load = round(os.getloadavg()[0], 1)
    if failure:
        return Result(name, contender.start, minutes, load=load, failure=failure)
    table, outcome = read_outcome(job.out)
    return Result(
        name,
        f"{contender.start} ({outcome.start})" if outcome.start else RANDOM,
        minutes,
        round(outcome.train_seconds / 60, 3),
        round(outcome.trained_images / images, 2),
        round(score(contender.stage, table, data.test), 4),
        round(outcome.trained_images / outcome.train_seconds, 2),
        round(len(data.test) / outcome.infer_seconds, 2),
        load,
    )


def run_child(job: PeerJob) -> str:
    """Do a job in a child process on the CPU; returns the last line of its log where it failed, else ""."""
    environment = {
        **os.environ,
        "PYTHONPATH": inherited_path(),
        "OMP_NUM_THREADS": str(job.threads),
        "CUDA_VISIBLE_DEVICES": "",
        "TQDM_DISABLE": "1",
    }
    command = [sys.executable, "-m", "siimcovid.apps.benchmarks.peers.peer_child", str(write_job(job))]
    log = job.out / "log.txt"
    with open(log, "w", encoding="utf-8") as stream:
        options = {"stdout": stream, "stderr": subprocess.STDOUT, "env": environment, "start_new_session": True}
        with subprocess.Popen(command, stdin=subprocess.PIPE, **options) as process:  # its stdin's end ends it
            code = process.wait()
    if not code:
        return ""
    last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
    return f"exit status {code}: {''.join(last)} (see {log.parent.name}/{log.name})"


def score(stage: str, table: pd.DataFrame, test: pd.DataFrame) -> float:
    """Opacity AP of a detector's table, mean AP of the study labels of the study model's."""
    if stage == "study":
        return study_precisions(study_probabilities(table), true_study_labels(test))["mean"]
    return opacity_score(table, test)


def line(result: Result) -> str:
    """A result in a line."""
    if result.failure:
        return f"{result.name}, {result.minutes:g} minutes: {result.failure}"
    return (
        f"{result.name} from {result.start}, {result.trained_minutes:.2f} minutes of {result.minutes:g}, "
        f"{result.epochs:.2f} epochs: {result.score:.4f}; images a second: training {result.train_speed:.2f}, "
        f"inference {result.infer_speed:.2f}; load {result.load}"
    )


def markdown(results: Sequence[Result]) -> str:
    """The results as Markdown: a table for the detectors' opacity AP and one for the study models' mean AP."""
    marks = sorted({result.minutes for result in results})
    parts = []
    for title, study in (("opacity AP", False), ("mean AP of the study labels", True)):
        names = [name for name in CONTENDERS if (CONTENDERS[name].stage == "study") == study]
        rows = [table_row(name, marks, results) for name in names if any(result.name == name for result in results)]
        if rows:
            after = " | ".join(f"{mark:g} minutes" for mark in marks)
            head = f"| {title} | starts from | {after} | training, images/s | inference, images/s |"
            parts.append("\n".join([head, "|---|---|" + "---|" * (len(marks) + 2), *rows]))
    return "\n\n".join(parts) + "\n"


def table_row(name: str, marks: Sequence[float], results: Sequence[Result]) -> str:
    """A contender's row: its score after each time, and its speeds after the longest that it finished."""
    own = {result.minutes: result for result in results if result.name == name}
    done = [result for result in own.values() if not result.failure]
    cells = [f"{own[mark].score:.3f}" if mark in own and not own[mark].failure else "failed" for mark in marks]
    cells = [cell if mark in own else "" for cell, mark in zip(cells, marks, strict=True)]
    speeds = [f"{done[-1].train_speed:.1f}", f"{done[-1].infer_speed:.1f}"] if done else ["", ""]
    return f"| {' | '.join([CONTENDERS[name].title, CONTENDERS[name].start, *cells, *speeds])} |"
