"""Time and memory over the number of images, from DICOM files to fused boxes, each number in a process of its own.

The images are small (a synthetic image of 160 x 128, shifted) and the models look at 64 pixels, so that what grows with
the number of images is seen, and not what an image costs.
"""

import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from siimcovid.core import stage_names
from siimcovid.core.files import atomic_path, make_folder

COUNTS = (100, 1000, 6000)
SHAPE, CACHE_SIZE, SIDE = (160, 128), 128, 64


def write_images(folder: Path, count: int) -> None:
    """Write `count` DICOM files, all different, as <study>/<series>/<image>.dcm below `folder`."""
    from pydicom.uid import ExplicitVRLittleEndian

    from siimcovid.apps.benchmarks.image_benchmarks import write_dicom
    from siimcovid.synthetic.anatomy import Anatomy
    from siimcovid.synthetic.radiograph import render

    make_folder(folder)
    pixels = render(Anatomy.draw(0), "typical", 2, SHAPE, 0).pixels
    template = write_dicom(folder / "template", ExplicitVRLittleEndian, pixels).read_bytes()
    size = 2 * pixels.size
    header, stored = template[:-size], np.frombuffer(template[-size:], "<u2").reshape(SHAPE)
    (folder / "template").unlink()
    for k in range(count):
        place = folder / f"{k:05d}" / f"{k:05d}"
        place.mkdir(parents=True)
        shifted = np.roll(stored, (k % SHAPE[0], k // SHAPE[0]), (0, 1))
        (place / f"{k:05d}.dcm").write_bytes(header + shifted.tobytes())


class Peak(threading.Thread):
    """The highest memory of this process and those it started, in bytes, looked at ten times a second."""

    def __init__(self):
        super().__init__(daemon=True)
        self.bytes, self.done = 0, threading.Event()

    def run(self) -> None:
        import psutil

        while not self.done.wait(0.1):
            used = 0
            for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
                try:
                    used += process.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
            self.bytes = max(self.bytes, used)


def measure(count: int) -> dict:
    """Index, prepare, predict and fuse `count` images: {"images", "peak_bytes", "seconds": {step: s}}."""
    import torch

    from siimcovid.core.overrides import override
    from siimcovid.core.presets import SMALL
    from siimcovid.data import image_cache
    from siimcovid.data.dicom_headers import scan_images
    from siimcovid.inference.predictor import predict_table
    from siimcovid.inference.weighted_boxes_fusion import fuse
    from siimcovid.models import checkpoints

    import pandas as pd  # isort: skip

    torch.manual_seed(0)
    seconds, begin = {}, 0.0
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder, "test"), count)
        peak = Peak()
        peak.start()

        def lap(step: str) -> None:
            nonlocal begin
            now = time.perf_counter()
            if step:
                seconds[step] = now - begin
            begin = now

        lap("")
        images = scan_images(Path(folder, "test"), progress=False).table.assign(study_label=None)
        images["boxes"] = [[]] * count
        lap("index")
        assert image_cache.prepare(images, Path(folder, "cache"), CACHE_SIZE, progress=False).empty
        lap("prepare")
        tables = []
        for stage in stage_names.SUBMISSION_STAGES:
            smaller = {"infer_size": SIDE, "infer_batch": 32} | ({"proposals": 20} if stage == "rcnn" else {})
            config = override(getattr(SMALL, stage), smaller)
            model = checkpoints.build_model(stage, config)
            tables.append(predict_table(stage, config, model, images, Path(folder, "cache")))
        lap("predict")
        fuse(pd.concat(tables[:2], ignore_index=True), stage_names.DETECTORS)
        lap("fuse")
        peak.done.set()
    return {"images": count, "peak_bytes": peak.bytes, "seconds": seconds}


def plot(path: Path) -> list[dict]:
    """Measure COUNTS and draw seconds and memory over them into a PNG; returns the measurements."""
    found = []
    for count in COUNTS:
        done = subprocess.run(
            [sys.executable, "-m", "siimcovid.apps.benchmarks.scaling_benchmark", str(count)],
            stdout=subprocess.PIPE,
            check=True,
        )
        found.append(json.loads(done.stdout.splitlines()[-1]))
        print(found[-1], flush=True)
    draw(found, path)
    print(path)
    return found


def draw(found: list[dict], path: Path) -> None:
    """Two panels over the number of images: seconds of the steps, one upon the other, and peak memory."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3), dpi=100, layout="constrained")
    time_axes, memory_axes = figure.subplots(1, 2)
    images = [row["images"] for row in found]
    steps = list(found[0]["seconds"])
    time_axes.stackplot(images, *([row["seconds"][step] for row in found] for step in steps), labels=steps, alpha=0.8)
    time_axes.plot(images, [sum(row["seconds"].values()) for row in found], "ko")
    time_axes.set(xlabel="images", ylabel="seconds", xlim=(0, None), ylim=(0, None))
    time_axes.legend(loc="upper left")
    memory_axes.plot(images, [row["peak_bytes"] / 2**20 for row in found], "ko-")
    memory_axes.set(xlabel="images", ylabel="peak memory of all processes, MiB", xlim=(0, None), ylim=(0, None))
    with atomic_path(path) as temporary:
        figure.savefig(temporary)


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]))))
