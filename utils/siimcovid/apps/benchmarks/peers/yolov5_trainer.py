"""yolov5's own trainer, from the installed package: `yolov5n` from random weights on its own data layout and settings.

In: our index and cache. Out: images/, labels/ and data.yaml as yolov5 reads them, its run folder, and its detections.
Its settings are its defaults (`hyp.scratch-low.yaml`, batch 16, images in memory), with three changes in its favour or
for the clock: its epochs are short (training_budget.py), its warm-up is at most a tenth of the training, and what it
validates on after each of them is eight train images (without validation it fails). Its process needs `numpy.trapz`,
which numpy 2.4 has dropped, and a font file, which it would download. What it unpickles is what it has written itself.
"""

import contextlib
import importlib
import os
import shutil
import time
from collections.abc import Iterator
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import torch
import yaml

from siimcovid.apps.benchmarks.peers.peer_job import Outcome, PeerJob
from siimcovid.apps.benchmarks.peers.training_budget import MEASURED, Plan, plan, step_seconds
from siimcovid.core.files import make_folder, write_text
from siimcovid.inference.predictor import DETECTION_COLUMNS

ARCHITECTURE, SIDE, BATCH = "yolov5n", 256, 16

#: Of its own validation: boxes of a lower score are left out, those that overlap a better one more are suppressed.
SCORE, NMS_IOU = 0.001, 0.6

#: Epochs of its warm-up.
WARM_UP = 3.0


def contend(job: PeerJob, images: pd.DataFrame, test: pd.DataFrame) -> tuple[pd.DataFrame, Outcome]:
    """Train for the job's time; returns what it predicts for the test images, and how it went."""
    make_usable(make_folder(job.out / "config"))
    data = write_data(images, job.cache, job.out)
    loaders: dict[str, Any] = {}
    ends, _ = run_trainer(job, data, loaders, Plan(1, MEASURED + 1), 1.0)
    whole = max(1, len(images) // BATCH)
    planned = plan(job.seconds, step_seconds(ends), whole)
    warm_up = min(WARM_UP * whole / planned.steps, planned.parts / 10)
    ends, begin = run_trainer(job, data, loaders, planned, warm_up)
    seconds = ends[-1] - begin
    begin = time.monotonic()
    table = predict(job.out / "run" / "weights" / "last.pt", test, job.cache)
    trained = len(ends) * min(BATCH, len(images))
    return table, Outcome("", seconds, trained, len(ends), time.monotonic() - begin)


def make_usable(folder: Path) -> None:
    """What the package needs before it is imported: a function that numpy has renamed, and a font in its `folder`."""
    import matplotlib

    if not hasattr(np, "trapz"):
        np.trapz = np.trapezoid  # noqa: NPY201
    shutil.copyfile(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", folder / "Arial.ttf")
    os.environ |= {"YOLOV5_CONFIG_DIR": str(folder), "YOLO_OFFLINE": "true", "HF_HUB_OFFLINE": "1"}
    os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"  # its checkpoints are whole modules


def write_data(images: pd.DataFrame, cache: Path, folder: Path) -> Path:
    """Lay images of the index out for yolov5: links to the cache, a text file of boxes each; returns data.yaml."""
    for name in ("images", "labels"):
        make_folder(folder / name)
    paths = []
    for name, boxes in zip(images["image_id"], images["boxes"], strict=True):
        paths.append(folder / "images" / f"{name}.png")
        with contextlib.suppress(FileExistsError):
            paths[-1].symlink_to((cache / f"{name}.png").resolve())
        write_text(folder / "labels" / f"{name}.txt", "".join(map(label_line, boxes)))
    lists = {"train": paths, "val": paths[:8]}
    for part, chosen in lists.items():
        write_text(folder / f"{part}.txt", "".join(f"{path.absolute()}\n" for path in chosen))
    facts = {"path": str(folder.absolute()), "train": "train.txt", "val": "val.txt", "names": {0: "opacity"}}
    write_text(folder / "data.yaml", yaml.safe_dump(facts))
    return folder / "data.yaml"


def label_line(box: list[float]) -> str:
    """xyxy fractions -> YOLO's line: class, centre x, centre y, width, height as fractions."""
    x1, y1, x2, y2 = box
    return f"0 {(x1 + x2) / 2:.6f} {(y1 + y2) / 2:.6f} {x2 - x1:.6f} {y2 - y1:.6f}\n"


class ShortLoader:
    """The trainer's own endless loader, cut into epochs of `steps` batches that follow each other."""

    def __init__(self, loader: Any, steps: int):
        self.steps, self.num_workers = steps, loader.num_workers
        self.batches: Iterator = chain.from_iterable(repeat(loader))

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator:
        return islice(self.batches, self.steps)


def run_trainer(
    job: PeerJob, data: Path, loaders: dict[str, Any], planned: Plan, warm_up: float
) -> tuple[list[float], float]:
    """Train in the package's own loop; returns when each step ended, and when the first began (time.monotonic).

    loaders: kept between two calls, with the images in memory. warm_up: in epochs of the plan.
    """
    trainer = importlib.import_module("yolov5.train")
    package, original = Path(trainer.__file__).parent, trainer.create_dataloader
    hyp = yaml.safe_load((package / "data" / "hyps" / "hyp.scratch-low.yaml").read_text(encoding="utf-8"))
    options = trainer.parse_opt(known=True)
    vars(options).update(
        weights="",
        cfg=str(package / "models" / f"{ARCHITECTURE}.yaml"),
        data=str(data.absolute()),
        epochs=planned.parts,
        batch_size=BATCH,
        imgsz=SIDE,
        patience=0,  # never stops early
        nosave=True,
        noplots=True,
        cache="ram",
        workers=0,  # the model wants the cores itself, as ours does
        seed=job.seed,
        save_dir=str(job.out / "run"),
    )

    def create_dataloader(path: str, *args: Any, **named: Any) -> tuple[Any, Any]:
        if path not in loaders:
            loaders[path] = original(path, *args, **named)
        loader, dataset = loaders[path]
        return (ShortLoader(loader, planned.steps) if named.get("augment") else loader), dataset

    ends, begins = [], []
    callbacks = trainer.Callbacks()
    callbacks.register_action("on_train_start", callback=lambda: begins.append(time.monotonic()))
    callbacks.register_action("on_train_batch_end", callback=lambda *_: ends.append(time.monotonic()))
    trainer.create_dataloader = create_dataloader
    try:
        trainer.train({**hyp, "warmup_epochs": warm_up}, options, torch.device("cpu"), callbacks)
    finally:
        trainer.create_dataloader = original
    return ends, begins[0]


@torch.inference_mode()
def predict(weights: Path, images: pd.DataFrame, cache: Path) -> pd.DataFrame:
    """The package's own detections for images of the index, a table as in predictor.py."""
    from yolov5.models.experimental import attempt_load
    from yolov5.utils.augmentations import letterbox
    from yolov5.utils.general import non_max_suppression, scale_boxes

    model, names, rows = attempt_load(str(weights), torch.device("cpu")), [], [np.empty((0, 5))]
    for first in range(0, len(images), 8):
        batch = images["image_id"].iloc[first : first + 8].tolist()
        pictures = [cv2.imread(str(cache / f"{name}.png")) for name in batch]
        squares = np.stack([letterbox(picture, SIDE, auto=False)[0] for picture in pictures])
        pixels = torch.from_numpy(squares).permute(0, 3, 1, 2).contiguous().float() / 255
        for name, picture, output in zip(batch, pictures, model(pixels)[0], strict=True):
            # one image at a time: its suppression leaves images out after a time
            (found,) = non_max_suppression(output[None], SCORE, NMS_IOU)
            height, width = picture.shape[:2]
            boxes = scale_boxes((SIDE, SIDE), found[:, :4], (height, width)).numpy() / (width, height, width, height)
            rows.append(np.hstack([found[:, 4:5].numpy(), boxes]))
            names += [name] * len(boxes)
    table = pd.DataFrame(np.concatenate(rows), columns=DETECTION_COLUMNS[2:])
    table.insert(0, "model", "yolov5")
    table.insert(0, "image_id", names)
    return table
