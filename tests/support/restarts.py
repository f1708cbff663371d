"""A fine-tuning run of the notebook that SIGTERM ends in every step in turn, and one that it leaves alone.

`main(COMPETITION, WEIGHTS, OUT)`: OUT/whole is the run left alone, OUT/killed the other. One process imports everything
and forks a child for each start, which spares the seconds of importing.
"""

import gc
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch

from siimcovid.core.stage_names import SUBMISSION_STAGES
from siimcovid.data import augmentation, competition, image_cache  # noqa: F401 - for the children
from siimcovid.inference import predictor, weighted_boxes_fusion
from siimcovid.kernel import step_profile, write_submissions
from siimcovid.models import faster_rcnn, study_classifier, yolo  # noqa: F401 - for the children
from siimcovid.training import train_stage, training_loop
from support.kernel_cells import draw_nothing, run_cells

FITS = (*SUBMISSION_STAGES, "rcnn.1")  # of two members each
POINTS = (
    "index",
    "plan",
    "prepare",
    *(f"fit {name}" for name in FITS),
    "detect",
    "classify",
    "fine_tune_on_pseudo_labels",
    "submit",
)


def end() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def ending_before(function: Callable, when: Callable[..., bool] = lambda *_: True) -> Callable:
    def wrapped(*given, **named):
        if when(*given):
            end()
        return function(*given, **named)

    return wrapped


def half_prepared(images, folder, size):
    """Preparation that ends in the middle; the plan's own does not."""
    if sys._getframe(1).f_code.co_name == "prepare":
        prepare(images.head(len(images) // 2), folder, size)
        end()
    return prepare(images, folder, size)


def half_trained(stage: str, folder: str, last: int) -> Callable:
    """Training of a stage that ends after its last step, with the one before saved; the plan's own does not."""

    def wrapped(name, config, model, dataset, out, **options):
        steps = []

        def on_step(progress) -> None:
            if name == stage and out.name == folder:
                steps.append(progress)
                training_loop.SAVE_EVERY = -1.0  # from here on, each step
                if len(steps) == last:
                    end()

        return train(name, config, model, dataset, out, **options, on_step=on_step)

    return wrapped


prepare, train, predict_images = image_cache.prepare, train_stage.train, predictor.predict_images


def patches(point: str) -> list:
    """What makes the run end in the middle of a step."""
    step, _, name = point.partition(" ")
    stage, _, number = name.partition(".")
    folder = f"member_{number}" if number else "weights"
    return {
        "index": lambda: [mock.patch.object(competition, "write_index", ending_before(competition.write_index))],
        "plan": lambda: [mock.patch.object(step_profile, "predict_images", ending_before(predict_images))],
        "prepare": lambda: [mock.patch.object(image_cache, "prepare", half_prepared)],
        "fit": lambda: [mock.patch.object(train_stage, "train", half_trained(stage, folder, 2))],
        "fine_tune_on_pseudo_labels": lambda: [
            mock.patch.object(train_stage, "train", half_trained("yolo", "pseudo", 3))
        ],
        "detect": lambda: [
            mock.patch.object(
                predictor, "predict_images", ending_before(predict_images, lambda name, *_: name == "yolo")
            )
        ],
        "classify": lambda: [
            mock.patch.object(
                predictor, "predict_images", ending_before(predict_images, lambda name, *_: name == "study")
            )
        ],
        "submit": lambda: [
            mock.patch.object(
                write_submissions,
                "_write_submission",
                ending_before(write_submissions._write_submission, lambda run, model, *_: model == "rcnn"),
            )
        ],
        "": list,
    }[step]()


def child(point: str, folders: list[str], out: Path) -> int:
    """Run the notebook in a fork that ends in this step, "" for none; returns its exit status."""
    process = os.fork()
    if process == 0:
        status = 1
        try:
            for patch in patches(point):
                patch.start()
            settings = {"cache_size": 64, "fusion.hflip_tta": False, "members": 2, "folds": 2}
            settings |= {"pseudo.epochs": 1, "pseudo.none": 0.5, "pseudo.score": 0.001}  # every image is labelled
            for stage in SUBMISSION_STAGES:
                settings |= {f"{stage}.size": 64, f"{stage}.infer_size": 64}
                settings |= {f"{stage}.training.epochs": 1, f"{stage}.training.batch": 2}
            given = {"COMPETITION_DIR": folders[0], "WEIGHTS_DIR": folders[1], "OUTPUT_DIR": str(out)}
            run = run_cells(**given, PRESET="demo", MODE="finetune", OVERRIDES=settings)["run"]
            status = 3 if run.degraded else 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def main(competition_folder: str, weights: str, out: str) -> None:
    torch.set_num_threads(1)
    step_profile.STEPS = step_profile.TRIAL_IMAGES = 1
    draw_nothing(setattr)
    weighted_boxes_fusion.fuse(
        predictor.pd.DataFrame(columns=weighted_boxes_fusion.COLUMNS), ["rcnn"]
    )  # compiled for all children
    gc.freeze()  # what is imported is no garbage: the children need not look through it after each training
    starts = [("whole", ""), *(("killed", point) for point in POINTS), ("killed", "")]
    for folder, point in starts:
        begin = time.monotonic()
        status = child(point, [competition_folder, weights], Path(out) / folder)
        there = (Path(out) / folder / "submission.csv").is_file()
        print(f"START,{folder},{point},{status},{there},{time.monotonic() - begin:.1f}", flush=True)
