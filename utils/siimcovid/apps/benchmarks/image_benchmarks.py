"""Benchmarks of what happens to images before a model sees them: preparation and feeding."""

import tempfile
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from time import perf_counter

import cv2
import numpy as np
import pandas as pd
import pydicom
from PIL import Image as Picture
from pydicom.pixels import apply_modality_lut, apply_voi_lut

from siimcovid.apps.benchmarks import Measured, best, race
from siimcovid.core.presets import FULL, SMALL
from siimcovid.core.processes import processors, run_apart
from siimcovid.data.dicom_decode import decode
from siimcovid.data.dicom_image import read_image
from siimcovid.data.image_cache import LIMIT, _make
from siimcovid.synthetic.anatomy import Anatomy
from siimcovid.synthetic.competition_plan import PlannedImage
from siimcovid.synthetic.dicom_writer import to_dicom
from siimcovid.synthetic.radiograph import render

ROWS, COLUMNS = 3000, 2500  # between the competition's commonest sizes; 12 bits are its commonest depth


@cache
def drawn(seed: int) -> np.ndarray:
    """A full-size synthetic image, (ROWS, COLUMNS) float32 in [0, 1]."""
    return render(Anatomy.draw(seed), "typical", 2, (ROWS, COLUMNS), seed).pixels


def write_dicom(path: Path, syntax: str, pixels: np.ndarray) -> Path:
    """Write a synthetic image as the competition's images are, 12 bits."""
    names = dict.fromkeys(("study", "series", "image", "patient"), "0123456789ab")
    image = PlannedImage(
        **names, split="test", number=0, annotated=True, study_label="typical", boxes=2, shape=pixels.shape, bits=12,
        photometric="MONOCHROME2", syntax=syntax, modality="DX", patient_seed=0, study_seed=0,
    )  # fmt: skip
    pydicom.config.settings.writing_validation_mode = pydicom.config.IGNORE
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="pydicom")  # its identifiers are no valid UIDs, as in the real files
        to_dicom(image, pixels, np.random.default_rng(0)).save_as(path, enforce_file_format=True)
    return path


def plain_chain(path: Path, picture: Path) -> np.ndarray:
    """The report's preparation, as the competition's kernels have it: float64 throughout, a full-size PNG by Pillow."""
    dataset = pydicom.dcmread(path)
    pixels = apply_voi_lut(apply_modality_lut(dataset.pixel_array, dataset), dataset).astype(np.float64)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        pixels = pixels.max() - pixels
    pixels = pixels - pixels.min()
    pixels = pixels / pixels.max()
    pixels = (pixels * 255).astype(np.uint8)
    Picture.fromarray(pixels).save(picture)
    return pixels


def prepare_raw() -> Measured:
    return _prepare("uncompressed", pydicom.uid.ExplicitVRLittleEndian)


def prepare_jpeg_lossless() -> Measured:
    return _prepare("JPEG Lossless", pydicom.uid.JPEGLosslessSV1)


def _prepare(kind: str, syntax: str) -> Measured:
    with tempfile.TemporaryDirectory() as folder:
        path = write_dicom(Path(folder, "image.dcm"), syntax, drawn(0))
        job = str(path), Path(folder, "ours.png"), FULL.cache_size
        found = race(lambda: plain_chain(path, Path(folder, "plain.png")), lambda: _make(job), 5, "processor")
        assert found.ours.reason == "", found.ours
        assert np.array_equal(read_image(path), found.baseline), "pixels before resizing differ"
        floor = {
            "read": best(path.read_bytes, 5, "processor"),
            "read and decode": best(lambda: decode(pydicom.dcmread(path)), 5, "processor"),
        }
        notes = {}
        if processors() > 1:
            notes["images per second with two processes over one"] = _pace(path, 2) / _pace(path, 1)
    return Measured(
        f"DICOM to a {FULL.cache_size}-pixel PNG, {ROWS} x {COLUMNS}, 12 bits, {kind}",
        "pydicom and NumPy in float64, full-size PNG by Pillow",
        "image",
        *found[:2],
        "processor",
        floor,
        notes,
    )


def _pace(path: Path, workers: int) -> float:
    """Images per second of some processes, from when all work until the first has no more."""
    with tempfile.TemporaryDirectory() as folder:
        jobs = [(str(path), Path(folder, f"{k}.png"), FULL.cache_size) for k in range(30 * workers)]
        stamps = [perf_counter() for _ in run_apart(_make, jobs, workers, LIMIT)][workers:-workers]
    return (len(stamps) - 1) / (stamps[-1] - stamps[0])


def feed() -> Measured:
    """An epoch of augmented batches for the `full` Faster R-CNN."""
    from siimcovid.data.datasets import ImageDataset, loader
    from siimcovid.data.resize import resize_to_square

    class FullSize(ImageDataset):
        """Images whose full-size PNGs are decoded whenever they are needed."""

        def image(self, number: int) -> np.ndarray:
            pixels = cv2.imread(str(self.folder / "full" / f"{self.image_ids[number]}.png"), cv2.IMREAD_GRAYSCALE)
            return resize_to_square(pixels, self.size)

    config, count = FULL.rcnn, 12
    with tempfile.TemporaryDirectory() as folder:
        images = _write_pictures(Path(folder), count)

        def epoch(dataset: ImageDataset) -> Callable[[], list]:
            return lambda: [sample for batch in loader(dataset, 4) for sample in zip(*batch.values(), strict=True)]

        full = epoch(FullSize(images, Path(folder), config.size, config.augment))
        first = race(
            full, lambda: epoch(ImageDataset(images, Path(folder), config.size, config.augment))(), 3, "processor"
        )  # a new memory in every round
        samples = ImageDataset(images, Path(folder), config.size, config.augment)
        epoch(samples)()
        later = race(full, epoch(samples), 3, "processor")
        for theirs, ours in zip(first.baseline, first.ours, strict=True):
            assert np.array_equal(theirs[1], ours[1]), "boxes differ"
            difference = np.abs(theirs[0].numpy().astype(float) - ours[0].numpy()).mean()
            assert difference < 2, f"images differ by {difference:.1f} grey levels of 255"  # they were resized twice
        again = epoch(samples)()
        assert all(np.array_equal(a[0], b[0]) for a, b in zip(first.ours, again, strict=True)), "memory changes images"
        augmented = best(lambda: [samples[k] for k in range(count)], 3, "processor")
    notes = {
        "seconds in the first epoch, which decodes": first.ours_s / count,
        "ratio in the first epoch": first.baseline_s / first.ours_s,
        "share of training that waits for data, small YOLO": waiting_share(),
    }
    return Measured(
        f"augmented {config.size}-pixel images from the cache, epochs after the first",
        "decoding full-size PNGs (OpenCV), the same augmentations",
        "image",
        later.baseline_s / count,
        later.ours_s / count,
        "processor",
        {"augment": augmented / count},
        notes,
    )


def _write_pictures(folder: Path, count: int) -> pd.DataFrame:
    """Synthetic images as pictures of the cache, and full-size in the folder `full`; returns their index."""
    (folder / "full").mkdir()
    rng, rows = np.random.default_rng(0), []
    for k in range(count):
        pixels = np.roll((drawn(k % 2) * 255).astype(np.uint8), int(rng.integers(200)), axis=1)
        cv2.imwrite(str(folder / "full" / f"{k}.png"), pixels)
        shape = round(COLUMNS * FULL.cache_size / ROWS), FULL.cache_size
        picture = cv2.resize(pixels, shape, interpolation=cv2.INTER_AREA)
        cv2.imwrite(str(folder / f"{k}.png"), picture, (cv2.IMWRITE_PNG_COMPRESSION, 1))
        rows.append({"image_id": str(k), "study_id": str(k), "boxes": [[0.1, 0.2, 0.4, 0.7]], "study_label": "typical"})
    return pd.DataFrame(rows)


def waiting_share() -> float:
    """Share of an epoch's seconds that training the `small` YOLO on all cores spends waiting for the loader."""
    from siimcovid.core.overrides import override
    from siimcovid.data.datasets import ImageDataset
    from siimcovid.models.checkpoints import build_model
    from siimcovid.training.training_loop import train

    with tempfile.TemporaryDirectory() as folder:
        images = _write_pictures(Path(folder), 16)
        config = override(SMALL.yolo, {"training.epochs": 2})
        samples = ImageDataset(images, Path(folder), config.size, config.augment)
        out = train("yolo", config, build_model("yolo", config), samples, Path(folder, "out"))
        return float(pd.read_csv(out.with_name("yolo.metrics.csv"))["waiting_share"].iloc[-1])
