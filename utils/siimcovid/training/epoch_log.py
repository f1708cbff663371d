"""What an epoch came to: a row of metrics.csv, TensorBoard's curves and a line for the reader.

rcnn 3/9  loss .412  AP .312 (best .320 at 2)  lr 4.1e-4  28 images/s  0:41 left 4:10
"""

import re
from pathlib import Path
from typing import Any

import pandas as pd

from siimcovid.core.files import write_csv
from siimcovid.training.training_state import Progress

#: stage -> name of its validation metric, where that is not an average precision.
METRICS = {"backbone": "AUC"}


def epoch_row(progress: Progress, learning_rate: float, metric: float | None, images_per_step: int) -> dict[str, Any]:
    """The columns of metrics.csv for the epoch that has just ended.

    epoch (from 1), loss and its parts (means over the steps), learning_rate (of the next update), metric (None without
    one), seconds, images_per_second (of all processes), waiting_share (of the seconds, spent on data).
    """
    return {
        "epoch": progress.epoch + 1,
        "loss": progress.loss / progress.batch,
        **{name: value / progress.batch for name, value in progress.parts.items()},
        "learning_rate": learning_rate,
        "metric": metric,
        "seconds": progress.seconds,
        "images_per_second": progress.batch * images_per_step / progress.seconds,
        "waiting_share": progress.waiting / progress.seconds,
    }


def write_metrics(history: list[dict[str, Any]], path: Path) -> None:
    """Write metrics.csv, a row per epoch."""
    write_csv(pd.DataFrame(history), path)


def epoch_line(stage: str, progress: Progress, epochs: int, took: float) -> str:
    """The line of the epoch that `progress.history` ends with.

    epochs: how many the stage has. took: seconds of the epoch with its validation; the rest is estimated from it.
    """
    row = progress.history[-1]
    texts = [f"{stage} {row['epoch']}/{epochs}", f"loss {short(row['loss'])}"]
    if row["metric"] is not None:
        best = f"best {short(progress.best)} at {progress.best_epoch + 1}"
        texts.append(f"{METRICS.get(stage, 'AP')} {short(row['metric'])} ({best})")
    rate = f"{row['learning_rate']:.1e}".replace("e-0", "e-") if row["learning_rate"] else "0"
    texts += [f"lr {rate}", f"{row['images_per_second']:.3g} images/s"]
    texts.append(f"{clock_time(took)} left {clock_time(took * (epochs - row['epoch']))}")
    return "  ".join(texts)


def short(value: float) -> str:
    """A number to three decimals without the zero before the point: ".412"."""
    return re.sub(r"^(-?)0\.", r"\1.", f"{value:.3f}")


def clock_time(seconds: float) -> str:
    """Seconds as "0:41" or, from an hour on, "1:02:03"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
