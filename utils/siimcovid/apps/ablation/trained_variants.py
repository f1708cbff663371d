"""The models of an ablation: each is trained once a competition, and its predictions are kept.

In: AblationData. Out, in <competition>/variants/<variant>/: the checkpoint, `test.csv` and `test_hflip.csv`, what it
predicts for the test images and of these mirrored (predictor.py's tables), for a variant that a fold was held out from
`held_out.csv` and `held_out_hflip.csv` of that fold's, and `cost.json`: processor seconds of training, and of
predicting an image.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from siimcovid.apps.ablation.ablation_data import AblationData
from siimcovid.core.configuration import Preset, PseudoLabelConfig
from siimcovid.core.device import choose_device
from siimcovid.core.files import write_csv, write_json
from siimcovid.core.labels import STUDY_LABELS
from siimcovid.core.overrides import override
from siimcovid.core.tables import read_csv
from siimcovid.data import folds
from siimcovid.data.datasets import ImageDataset, loader
from siimcovid.data.image_memory import ImageMemory
from siimcovid.data.resize import centre_crop
from siimcovid.inference import pseudo_labels
from siimcovid.inference.fit_ensemble import NOTHING
from siimcovid.inference.predictor import predict_table
from siimcovid.models import checkpoints, weights_manifest
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
class Variant:
    """One model."""

    name: str
    stage: str
    changes: Mapping[str, Any] = field(default_factory=dict)  # of the plain preset
    fold: int | None = None  # that is held out
    after: str = ""  # the variant that it goes on from, on pseudo-labels too


def variants(detectors: Sequence[str], count: int, every: bool = True) -> list[Variant]:
    """The variants of a competition: with `every` all that the items need, else those of the plain and the final
    system.

    detectors: stages. count: folds, each of which is held out from a member of its own.
    """
    studies = {"study": {}, OVERSAMPLED: {"study.training.balance": "oversample"}}
    if every:
        studies[NONE] = {"study.none": 1.0}
    found = [Variant(name, name) for name in (detectors if every else ("rcnn", "yolo"))]
    found += [Variant(name, "study", changes) for name, changes in studies.items()]
    if every:
        found += [
            Variant("study smoothed", "study", {"study.label_smoothing": 0.1}),
            Variant("study focal", "study", {"study.focal": 2.0}),
            Variant("study weighted", "study", {"study.training.balance": "weights"}),
            Variant("study averaged", "study", {"study.training.ema": 0.99}),
            Variant("study unfrozen", "study", UNFROZEN),
            Variant("study map", "study", {**UNFROZEN, "study.mask": 2.0}),
            *(Variant(f"{name} pseudo", name, PSEUDO, after=name) for name in ("rcnn", "yolo")),
        ]
    for fold in range(count):
        found += [Variant(f"{name} fold {fold}", name, fold=fold) for name in ("rcnn", "yolo")]
        found += [Variant(f"{name} fold {fold}", "study", studies[name], fold) for name in studies if name != "study"]
    return found


@dataclass
class VariantTrainer:
    """Trains the variants of one competition, and predicts with them."""

    data: AblationData
    preset: Preset  # with PLAIN
    folds: int
    pooled: dict[tuple, tuple[torch.Tensor, float]] = field(default_factory=dict)  # see `_heads`
    features: FeatureCache = field(default_factory=FeatureCache)  # of the frozen backbone that arms share

    def folder(self, variant: Variant) -> Path:
        """Where a variant lies."""
        return self.data.folder / "variants" / variant.name.replace(" ", "_")

    def configured(self, variant: Variant) -> Preset:
        """The preset that a variant is trained with: on every epoch of all images, the last is kept."""
        fixed = {
            "hold_out": False,
            f"{variant.stage}.training.validate": False,
            f"{variant.stage}.training.patience": 0,
            "folds": self.folds,
        }
        return override(self.preset, {**variant.changes, **fixed, "fold": variant.fold or 0})

    def parts_of(self, variant: Variant) -> dict[str, pd.DataFrame]:
        """Name -> images that a variant predicts."""
        if variant.fold is None:
            return {"test": self.data.test}
        return {"test": self.data.test, "held_out": self.split(variant)[1]}

    def split(self, variant: Variant) -> tuple[pd.DataFrame, pd.DataFrame]:
        """The images that a fold variant is trained on, and those held out from it."""
        return folds.split(self.data.train, variant.fold, self.folds, self.preset.seed, self.data.copies)

    def run(self, variant: Variant, labels: Callable[[PseudoLabelConfig], pd.DataFrame]) -> None:
        """Train a variant and let it predict, where that is not done. labels: gives the test images with
        pseudo-labels."""
        out, preset = self.folder(variant), self.configured(variant)
        if (out / "cost.json").is_file():
            return
        samples = self.data.train if variant.fold is None else self.split(variant)[0]
        labelled = labels(preset.pseudo) if variant.after else None
        begin, computed = time.process_time(), self.features.key
        if labelled is None:
            data = self.data
            path = train_stage.fit(variant.stage, preset, samples, data.cache, data.start, out, features=self.features)
            weights_manifest.register_trained(path, variant.stage, preset, data.name)
        else:
            preset, samples = pseudo_labels.further(variant.stage, preset, samples, labelled)
            path = train_stage.fit(variant.stage, preset, samples, self.data.cache, out.with_name(variant.after), out)
        seconds, predicting, count = time.process_time() - begin, 0.0, 0
        if variant.stage == "study" and preset.study.frozen and computed is not None and computed == self.features.key:
            seconds += self.features.seconds  # they were computed for another variant
        for part, images in self.parts_of(variant).items():
            for hflip in (False, True):
                table, cost = self._predict(variant.stage, path, images, hflip)
                write_csv(table, out / f"{part}{'_hflip' if hflip else ''}.csv")
                predicting, count = predicting + cost, count + len(images)
        write_json(out / "cost.json", {"train": round(seconds, 1), "image": round(predicting / count, 4)})

    def _predict(self, stage: str, path: Path, images: pd.DataFrame, hflip: bool) -> tuple[pd.DataFrame, float]:
        """What a checkpoint predicts for images, and the processor seconds that it takes."""
        _, config, model = checkpoints.load(path)
        if stage == "study" and config.frozen:
            return self._heads(config, model, images, hflip)
        begin = time.process_time()
        table = predict_table(stage, config, model, images, self.data.cache, hflip)
        return table, time.process_time() - begin

    def _heads(self, config: Any, model: Any, images: pd.DataFrame, hflip: bool) -> tuple[pd.DataFrame, float]:
        """The same of a study model with the frozen backbone that such variants share: features are pooled once."""
        key = (*images["image_id"], config.infer_size, hflip)
        device = choose_device()
        model = model.to(device)
        if key not in self.pooled:
            samples = ImageDataset(images, self.data.cache, config.infer_size, memory=ImageMemory(0))
            begin = time.process_time()
            with torch.inference_mode():
                parts = []
                for batch in loader(samples, config.infer_batch):
                    pixels = centre_crop(batch["images"].to(device), config.augment.crop)
                    parts.append(model.features(pixels.flip(-1) if hflip else pixels))
            self.pooled[key] = torch.cat(parts), time.process_time() - begin
        features, seconds = self.pooled[key]
        with torch.inference_mode():
            outputs = probabilities(model.head(features).float()).cpu().double().numpy()
        columns = [*STUDY_LABELS, "none"] if config.none else list(STUDY_LABELS)
        table = images[["image_id", "study_id"]].reset_index(drop=True)
        return table.join(pd.DataFrame(outputs, columns=columns)), seconds

    def outputs(self, variant: Variant, part: str, hflip: bool) -> pd.DataFrame:
        """What a variant predicted for a part's images."""
        table = read_csv(self.folder(variant) / f"{part}{'_hflip' if hflip else ''}.csv", ["image_id"])
        texts = ("image_id", "study_id", "model")
        return table.astype({name: str if name in texts else float for name in table})

    def cost(self, variant: Variant) -> dict[str, float]:
        """Its processor seconds: "train", and "image" of predicting one."""
        return json.loads((self.folder(variant) / "cost.json").read_text(encoding="utf-8"))


def trainer(data: AblationData, preset: Preset, count: int) -> VariantTrainer:
    """A trainer of variants on the plain preset, with `count` folds."""
    return VariantTrainer(data, replace(override(preset, PLAIN), folds=count), count)
