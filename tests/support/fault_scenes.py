"""Scenes for test_faults.py: a competition and weights in which one thing is broken, and what breaks it."""

import errno
import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from siimcovid.data import image_cache
from siimcovid.evaluation import submission_validator
from siimcovid.kernel.run import Run
from siimcovid.kernel.run_summary import summary
from siimcovid.models import checkpoints, weights_manifest
from siimcovid.training import train_stage
from support import fault_workers
from support.kernel_cells import run_cells


@dataclass
class Scene:
    """Copies of a competition and of weights, to break one thing in."""

    folder: Path
    patch: pytest.MonkeyPatch
    original: Path
    parameters: dict = field(default_factory=dict)
    run: Run | None = None

    @property
    def competition(self) -> Path:
        return self.folder / "competition"

    @property
    def weights(self) -> Path:
        return self.folder / "weights"

    @property
    def out(self) -> Path:
        return self.folder / "out"

    @property
    def images(self) -> list[Path]:
        return sorted((self.competition / "test").glob("*/*/*.dcm"))

    def damage(self, where: str, how: str) -> None:
        damage(self.folder / where, how)

    def execute(self) -> None:
        defaults = {"COMPETITION_DIR": str(self.competition), "WEIGHTS_DIR": str(self.weights)}
        defaults |= {
            "OUTPUT_DIR": str(self.out),
            "PRESET": "demo",
            "OVERRIDES": {"cache_size": 64, "fusion.hflip_tta": False},
        }
        self.run = run_cells(**defaults | self.parameters)["run"]

    def report(self) -> str:
        """All that is said of faults: the last cell's text and run.json."""
        record = self.run.folder / "run.json"
        return summary(self.run) + (record.read_text() if record.is_file() else "")

    def sample(self) -> pd.DataFrame:
        return pd.read_csv(self.original / "sample_submission.csv")

    def answered(self) -> pd.DataFrame:
        return pd.read_csv(self.run.folder / "submission.csv", dtype=str, keep_default_na=False)


def check(scene: Scene, by_priors: str = "none") -> None:
    """The submission answers the sample's ids and is valid, and so many of its rows are priors."""
    rows, sample = scene.answered(), scene.sample()
    assert sorted(rows["id"]) == sorted(sample["id"])
    index = scene.run.folder / "index.csv"
    verdict = submission_validator.validate(
        scene.run.folder / "submission.csv",
        scene.original / "sample_submission.csv",
        index if index.is_file() else None,
    )
    assert verdict.faults == []
    kinds = sample["id"].str.endswith("_study")
    expected = {"none": 0, "all": len(sample), "studies": kinds.sum(), "images": (~kinds).sum()}
    if by_priors == "some":
        assert 0 < scene.run.record.by_priors < len(sample)
    else:
        assert scene.run.record.by_priors == expected[by_priors]


def parameter(**changes) -> Callable[[Scene], None]:
    return lambda scene: scene.parameters.update(changes)


def harm(where: str, how: str, **parameters) -> Callable[[Scene], None]:
    def inject(scene: Scene) -> None:
        scene.damage(where, how)
        scene.parameters.update(parameters)

    return inject


def damaged_labels(name: str, how: str) -> Callable[[Scene], None]:
    """In MODE finetune, with training replaced by a copy of given weights where there is something to train on."""

    def inject(scene: Scene) -> None:
        scene.damage(f"competition/{name}", how)
        scene.parameters["MODE"] = "finetune"
        scene.patch.setattr(train_stage, "fit", copied_training(scene.weights))

    return inject


def copied_training(given: Path, fit=train_stage.fit) -> Callable[..., Path]:
    def copy(stage, preset, images, folder, start, out, may_start_epoch=None, **options):
        known = images[images["split"] == "train"]
        if known.empty or (stage == "study" and known["study_label"].isna().all()):
            return fit(stage, preset, images, folder, start, out)
        out.mkdir(parents=True, exist_ok=True)
        for name in (f"{stage}.safetensors", f"{stage}.json"):
            shutil.copy(given / name, out / name)
        row = {"epoch": 1, "loss": 1.0, "learning_rate": 1.0, "metric": None, "seconds": 0.1, "images_per_second": 40.0}
        pd.DataFrame([row]).to_csv(out / f"{stage}.metrics.csv", index=False)
        return out / f"{stage}.safetensors"

    return copy


def half_images(how: str) -> Callable[[Scene], None]:
    def inject(scene: Scene) -> None:
        for image in scene.images[::2]:
            damage(image, how)

    return inject


def no_test_folder(scene: Scene) -> None:
    shutil.rmtree(scene.competition / "test")


def empty_test_folder(scene: Scene) -> None:
    no_test_folder(scene)
    (scene.competition / "test").mkdir()


def file_for_test_folder(scene: Scene) -> None:
    no_test_folder(scene)
    (scene.competition / "test").write_bytes(b"not a folder")


def nothing_but_a_folder(scene: Scene) -> None:
    shutil.rmtree(scene.competition)
    scene.competition.mkdir()


def sample_asks_for_more(scene: Scene) -> None:
    shutil.rmtree(f"{scene.competition}.truth")  # which answers other ids
    for base in (scene.competition, scene.original):
        sample = pd.read_csv(scene.original / "sample_submission.csv")
        more = pd.DataFrame({"id": ["0123abcd_study", "4567cdef_image"], "PredictionString": "none 1 0 0 1 1"})
        (base / "sample_submission.csv").unlink()
        pd.concat([sample, more]).drop_duplicates("id").to_csv(base / "sample_submission.csv", index=False)


def sample_asks_for_less(scene: Scene) -> None:
    shutil.rmtree(f"{scene.competition}.truth")
    sample, study = scene.sample(), scene.images[0].parents[1]
    ids = [f"{study.name}_study", *(f"{image.stem}_image" for image in study.glob("*/*.dcm"))]
    for base in (scene.competition, scene.original):
        (base / "sample_submission.csv").unlink()
        sample[~sample["id"].isin(ids)].to_csv(base / "sample_submission.csv", index=False)


def not_finite(stage: str) -> Callable[[Scene], None]:
    def inject(scene: Scene) -> None:
        path = scene.weights / f"{stage}.safetensors"
        _, config, model = checkpoints.load(path)
        weight = next(parameter for parameter in model.parameters() if parameter.ndim > 1)
        weight.data[(0,) * weight.ndim] = float("nan")
        path.unlink()
        checkpoints.save(path, model, stage, config)
        manifest = scene.weights / "manifest.json"
        entries = json.loads(manifest.read_text())
        manifest.unlink()
        manifest.write_text(json.dumps(entries))
        weights_manifest.register(path, stage=stage)

    return inject


def out_of_memory(stage: str, fits: Callable[[int, str | None], bool]) -> Callable[[Scene], None]:
    """A GPU that has room for a model's batch only where `fits` says so."""

    def inject(scene: Scene) -> None:
        from siimcovid.inference import predictor

        real = predictor.predict_images

        def predict_images(name, config, model, images, folder, hflip=False, device=None, *rest, **options):
            if name == stage and not fits(config.infer_batch, device):
                raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
            return real(name, config, model, images, folder, hflip, device, *rest, **options)

        scene.patch.setattr(predictor, "predict_images", predict_images)

    return inject


def training_out_of_memory(scene: Scene) -> None:
    """A GPU that has room for two images of training."""
    copied = copied_training(scene.weights)

    def fit(stage, preset, *arguments, **options):
        if getattr(preset, stage).training.batch > 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return copied(stage, preset, *arguments)

    scene.parameters["MODE"] = "finetune"
    scene.patch.setattr(train_stage, "fit", fit)


def worker(function: Callable) -> Callable[[Scene], None]:
    def inject(scene: Scene) -> None:
        scene.out.mkdir()
        (scene.out / fault_workers.VICTIM).write_text(scene.images[0].stem)
        scene.patch.setattr(image_cache, "_make", function)

    return inject


def full_disk_after_the_first_submission(scene: Scene) -> None:
    real = os.replace

    def replace(source, target):
        if Path(target).name != "submission.csv" or Path(target).exists():
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        real(source, target)

    scene.patch.setattr(os, "replace", replace)


def torn_picture(scene: Scene) -> None:
    """A cache of an earlier run in which one picture was cut off."""
    images = pd.DataFrame({"image_id": [f.stem for f in scene.images], "path": list(map(str, scene.images))})
    image_cache.prepare(images, scene.out / "cache", 64, 1)
    damage(scene.out / "cache" / f"{scene.images[0].stem}.png", "truncated")


def without(module: str) -> Callable[[Scene], None]:
    """A module that cannot be imported, nor can those that took something from it before."""

    def inject(scene: Scene) -> None:
        for name, loaded in list(sys.modules.items()):
            if (
                name.startswith("siimcovid.")
                and name != module
                and module in {getattr(value, "__module__", None) for value in vars(loaded).values()}
            ):
                scene.patch.delitem(sys.modules, name)
        scene.patch.setitem(sys.modules, module, None)

    return inject


def output_below_a_file(scene: Scene) -> None:
    (scene.folder / "file").write_text("")
    (scene.folder / "here").mkdir()
    scene.patch.chdir(scene.folder / "here")
    scene.parameters["OUTPUT_DIR"] = str(scene.folder / "file" / "out")


def damaged_record(scene: Scene) -> None:
    scene.out.mkdir()
    (scene.out / "run.json").write_text('{"mode": "infer", "plan": 7')


def damage(path: Path, how: str) -> None:
    """Make a file missing, empty, truncated (in the middle of a line or tensor) or garbled; links stay as they are."""
    data = path.read_bytes()
    path.unlink()
    if how == "missing":
        return
    rng = np.random.default_rng(len(data))
    garbage = rng.integers(0, 256, max(len(data), 64), dtype=np.uint8).tobytes()[: max(len(data), 64)]
    path.write_bytes({"empty": b"", "truncated": data[: len(data) * 6 // 10], "garbled": garbage}[how])


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """A DICOM file with one thing wrong: bytes flipped, cut off, or two spans of its header swapped."""
    kind = rng.integers(4)
    if kind == 0:  # a few bytes anywhere
        changed = np.frombuffer(data, np.uint8).copy()
        changed[rng.integers(0, len(data), rng.integers(1, 9))] = rng.integers(0, 256)
        return changed.tobytes()
    if kind == 1:  # a few bits of the header's values and lengths
        changed = np.frombuffer(data, np.uint8).copy()
        places = rng.integers(128, min(len(data), 700), rng.integers(1, 5))
        changed[places] ^= (1 << rng.integers(0, 8, len(places))).astype(np.uint8)
        return changed.tobytes()
    if kind == 2:
        return data[: rng.integers(0, len(data))]
    first, second = sorted(rng.integers(132, min(len(data), 700) - 16, 2).tolist())
    if second - first < 8:
        return data[:first] + data[first + 8 :]
    swapped = data[second : second + 8] + data[first + 8 : second] + data[first : first + 8]
    return data[:first] + swapped + data[second + 8 :]
