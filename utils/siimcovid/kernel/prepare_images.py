"""Preparing the images in rounds, those of the submission first, as long as the time allows.

An image that cannot be read is caught in data/image_cache.py and listed; its row in the submission holds the train
set's frequencies (write_submissions.py).
"""

from dataclasses import replace

import pandas as pd

from siimcovid.kernel.queue_forecast import is_training
from siimcovid.kernel.run import Run

#: Seconds that a round of preparation is planned for at least; longer where there is time to spare.
ROUND = 30.0


def wanted_images(run: Run) -> pd.DataFrame:
    """The images to prepare, in their order: those of the submission, then those that are trained on."""
    images = run.competition.images
    test, train = images[(images["split"] == "test") & images["in_sample"]], images[images["split"] == "train"]
    return (pd.concat([test, train]) if run.mode == "finetune" else test).drop_duplicates("image_id")


def missing_images(run: Run, images: pd.DataFrame) -> pd.DataFrame:
    """Those of the images without a picture in the cache."""
    return images[[not (run.cache / f"{name}.png").is_file() for name in images["image_id"]]]


def prepare(run: Run) -> pd.DataFrame:
    """Prepare the images; returns those that could not be: image_id, path, reason."""
    images, tried, record = None, 0, run.record
    with run.step("prepare", "the images that were prepared before"):
        from siimcovid.data import image_cache

        images = wanted_images(run)
        while tried < len(images) and (spare := _spare(run, images, tried)) > 0:
            # a quarter of the time to spare a round: the images may turn out slower than the first ones were
            tried += max(1, int(max(ROUND, spare / 4) / max(run.planner.profile.prepare, 1e-6)))
            record.failures = image_cache.prepare(images.head(tried), run.cache, run.preset.cache_size)
            record.notices = image_cache.read_notices(run.cache)
    if images is None:
        record.failures = run.competition.images[["image_id", "path"]].assign(reason="was not prepared")
        return record.failures
    late = missing_images(run, images[~images["image_id"].isin(record.failures["image_id"])])
    if len(late):
        if tried < len(images):
            record.end(f"preparation: {len(late)} of {len(images)} images are left out")
        reasons = late[["image_id", "path"]].assign(reason="was not prepared: the time or the disk did not suffice")
        record.failures = pd.concat([record.failures, reasons], ignore_index=True)
    run.planner.profile = replace(run.planner.profile, to_prepare=0, test_images=len(run.test))
    run.revise()
    run.write()
    return record.failures


def _spare(run: Run, images: pd.DataFrame, tried: int) -> float:
    """Seconds that are left once what was prepared so far is trained on and predicted as quickly as can be."""
    test = int((images["split"] == "test").sum())
    seconds = run.planner.least(replace(run.planner.profile, to_prepare=1, test_images=min(tried + 1, test)))
    training = sum(value for step, value in seconds.items() if is_training(step))
    share = max(0, tried + 1 - test) / max(1, len(images) - test)  # train images come last
    return run.budget.left() - (sum(seconds.values()) - training) - training * share
