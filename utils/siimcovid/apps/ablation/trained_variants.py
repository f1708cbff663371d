"""The models of an ablation: each is trained once a competition, and what it says is kept.

In: a Material. Out, in <competition>/arms/<arm>/: the checkpoint, `test.csv` and `test_hflip.csv`, what it says of the
test images and of these mirrored (predict.py's tables), for an arm that a fold was held out from `held_out.csv` and
`held_out_hflip.csv` of that fold's, and `cost.json`: processor seconds of training, and of predicting an image.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torchvision.transforms.functional import center_crop

from siimcovid.apps.ablation.ablation_data import Material
from siimcovid.core.configuration import Preset, PseudoLabelConfig
from siimcovid.core.files import atomic_path, write_json
from siimcovid.core.labels import STUDY_LABELS
from siimcovid.core.overrides import override
from siimcovid.core.tables import read_csv
from siimcovid.data import folds
from siimcovid.data.datasets import SHARED, ImageDataset, loader
from siimcovid.inference import pseudo_labels
from siimcovid.inference.fit_ensemble import NOTHING
from siimcovid.inference.predictor import default_device, predict_table
from siimcovid.models import checkpoints, weights_folder
from siimcovid.models.study_classifier import probabilities
from siimcovid.training import train_stage
from siimcovid.training.frozen_features import FeatureCache

#: The preset without any of the items: the report's three single models.
PLAIN: Mapping[str, Any] = {
    "study.frozen": True,
    "study.mask": 0.0,
    "study.none": 0.0,
    "study.hflip_tta": False,
    "study.focal": 0.0,
    "study.label_smoothing": 0.0,
    "study.training.balance": "none",
    "study.training.ema": 0.0,
    "fusion.detectors": ["rcnn", "yolo"],
    "fusion.weights": [1.0, 1.0],
    "fusion.iou": 0.55,
    "fusion.hflip_tta": False,
    **NOTHING,
}

#: Names of two study models: rare study labels are drawn as often as the others; and one that says `none` too.
OVERSAMPLED, NONE = "study oversampled", "study none"

#: A study model whose backbone learns: few epochs at a lower rate, on images of the detectors' size.
UNFROZEN: Mapping[str, Any] = {
    "study.frozen": False,
    "study.views": 0,
    "study.size": 256,
    "study.infer_size": 256,
    "study.training.epochs": 6,
    "study.training.learning_rate": 3e-4,
    "study.training.clip_norm": 10.0,
}

#: Further training on pseudo-labels.
PSEUDO: Mapping[str, Any] = {"pseudo.epochs": 2}


@dataclass(frozen=True)
class Arm:
    """One model."""

    name: str
    stage: str
    changes: Mapping[str, Any] = field(default_factory=dict)  # of the plain preset
    fold: int | None = None  # that is held out
    after: str = ""  # the arm that it goes on from, on pseudo-labels too


def arms(detectors: Sequence[str], count: int, every: bool = True) -> list[Arm]:
    """The arms of a competition: with `every` all that the items need, else those of the plain and the final system.

    detectors: families. count: folds, each of which is held out from a member of its own.
    """
    studies = {"study": {}, OVERSAMPLED: {"study.training.balance": "oversample"}}
    if every:
        studies[NONE] = {"study.none": 1.0}
    found = [Arm(name, name) for name in (detectors if every else ("rcnn", "yolo"))]
    found += [Arm(name, "study", changes) for name, changes in studies.items()]
    if every:
        found += [
            Arm("study smoothed", "study", {"study.label_smoothing": 0.1}),
            Arm("study focal", "study", {"study.focal": 2.0}),
            Arm("study weighted", "study", {"study.training.balance": "weights"}),
            Arm("study averaged", "study", {"study.training.ema": 0.99}),
            Arm("study unfrozen", "study", UNFROZEN),
            Arm("study map", "study", {**UNFROZEN, "study.mask": 0.4}),
            *(Arm(f"{name} pseudo", name, PSEUDO, after=name) for name in ("rcnn", "yolo")),
        ]
    for fold in range(count):
        found += [Arm(f"{name} fold {fold}", name, fold=fold) for name in ("rcnn", "yolo")]
        found += [Arm(f"{name} fold {fold}", "study", studies[name], fold) for name in studies if name != "study"]
    return found


@dataclass
class Trainer:
    """Trains the arms of one competition, and lets them predict."""

    material: Material
    preset: Preset  # with PLAIN
    folds: int
    pooled: dict[tuple, tuple[torch.Tensor, float]] = field(default_factory=dict)  # see `_heads`
    features: FeatureCache = field(default_factory=FeatureCache)  # of the frozen backbone that arms share

    def folder(self, arm: Arm) -> Path:
        """Where an arm lies."""
        return self.material.folder / "arms" / arm.name.replace(" ", "_")

    def configured(self, arm: Arm) -> Preset:
        """The preset that an arm is trained with: on every epoch of all images, the last is kept."""
        fixed = {f"{arm.stage}.training.validate": False, f"{arm.stage}.training.patience": 0, "folds": self.folds}
        return override(self.preset, {**arm.changes, **fixed, "fold": arm.fold or 0})

    def sides(self, arm: Arm) -> dict[str, pd.DataFrame]:
        """Name -> images that an arm is asked about."""
        if arm.fold is None:
            return {"test": self.material.test}
        return {"test": self.material.test, "held_out": self.split(arm)[1]}

    def split(self, arm: Arm) -> tuple[pd.DataFrame, pd.DataFrame]:
        """The images that a fold arm is trained on, and those held out from it."""
        return folds.split(self.material.train, arm.fold, self.folds, self.preset.seed, self.material.copies)

    def run(self, arm: Arm, labels: Callable[[PseudoLabelConfig], pd.DataFrame]) -> None:
        """Train an arm and let it predict, where that is not done. labels: gives the test images with pseudo-labels."""
        out, preset = self.folder(arm), self.configured(arm)
        if (out / "cost.json").is_file():
            return
        samples = self.material.train if arm.fold is None else self.split(arm)[0]
        labelled = labels(preset.pseudo) if arm.after else None
        begin, pooled = time.process_time(), self.features.key
        if labelled is None:
            path = train_stage.fit(
                arm.stage, preset, samples, self.material.cache, self.material.start, out, features=self.features
            )
            weights_folder.register_trained(path, arm.stage, preset, self.material.name)
        else:
            preset, samples = pseudo_labels.further(arm.stage, preset, samples, labelled)
            path = train_stage.fit(arm.stage, preset, samples, self.material.cache, out.with_name(arm.after), out)
        seconds, predicting, count = time.process_time() - begin, 0.0, 0
        if arm.stage == "study" and preset.study.frozen and pooled is not None and pooled == self.features.key:
            seconds += self.features.seconds  # they were computed for another arm
        for side, images in self.sides(arm).items():
            for hflip in (False, True):
                table, cost = self._predict(arm.stage, path, images, hflip)
                with atomic_path(out / f"{side}{'_hflip' if hflip else ''}.csv") as temporary:
                    table.to_csv(temporary, index=False)
                predicting, count = predicting + cost, count + len(images)
        write_json(out / "cost.json", {"train": round(seconds, 1), "image": round(predicting / count, 4)})

    def _predict(self, stage: str, path: Path, images: pd.DataFrame, hflip: bool) -> tuple[pd.DataFrame, float]:
        """What a checkpoint says of images, and the processor seconds that it takes."""
        _, config, model = checkpoints.load(path)
        if stage == "study" and config.frozen:
            return self._heads(config, model, images, hflip)
        begin = time.process_time()
        table = predict_table(stage, config, model, images, self.material.cache, hflip)
        return table, time.process_time() - begin

    def _heads(self, config: Any, model: Any, images: pd.DataFrame, hflip: bool) -> tuple[pd.DataFrame, float]:
        """The same of a study model with the frozen backbone that such arms share: features are pooled once."""
        key = (*images["image_id"], config.infer_size, hflip)
        device = default_device()
        model = model.to(device)
        if key not in self.pooled:
            samples = ImageDataset(images, self.material.cache, config.infer_size, memory=SHARED)
            begin = time.process_time()
            with torch.inference_mode():
                side = config.augment.crop or config.infer_size
                parts = []
                for batch in loader(samples, config.infer_batch):
                    pixels = center_crop(batch["images"].to(device), [side, side])
                    parts.append(model.features(pixels.flip(-1) if hflip else pixels))
            self.pooled[key] = torch.cat(parts), time.process_time() - begin
        features, seconds = self.pooled[key]
        with torch.inference_mode():
            outputs = probabilities(model.head(features).float()).cpu().double().numpy()
        columns = [*STUDY_LABELS, "none"] if config.none else list(STUDY_LABELS)
        table = images[["image_id", "study_id"]].reset_index(drop=True)
        return table.join(pd.DataFrame(outputs, columns=columns)), seconds

    def outputs(self, arm: Arm, side: str, hflip: bool) -> pd.DataFrame:
        """What an arm said of a side's images."""
        table = read_csv(self.folder(arm) / f"{side}{'_hflip' if hflip else ''}.csv", ["image_id"])
        texts = ("image_id", "study_id", "model")
        return table.astype({name: str if name in texts else float for name in table})

    def cost(self, arm: Arm) -> dict[str, float]:
        """Its processor seconds: "train", and "image" of predicting one."""
        return json.loads((self.folder(arm) / "cost.json").read_text(encoding="utf-8"))


def trainer(material: Material, preset: Preset, count: int) -> Trainer:
    """A trainer of arms on the plain preset, with `count` folds."""
    return Trainer(material, replace(override(preset, PLAIN), folds=count), count)
