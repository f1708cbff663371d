"""What can be set: a preset is a tree of these frozen dataclasses, each value with the range that it may have.

presets.py, preset_small.py and preset_best.py hold the numbers of the presets; overrides.py changes single values,
checks types and ranges, and carries the tree through JSON, beside each checkpoint. What several values must fulfil
together is in the methods `check_values`. This module imports no torch.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, get_type_hints

from siimcovid.core import overrides
from siimcovid.core.errors import InputError


@dataclass(frozen=True)
class Range:
    """The finite numbers from `low` to `high`; `above` and `below` exclude these two themselves."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False

    def __contains__(self, number: float) -> bool:
        enough = number > self.low if self.above else number >= self.low
        return enough and (number < self.high if self.below else number <= self.high)

    def __str__(self) -> str:
        if not self.above and not self.below and self.high < math.inf:
            return f"from {self.low:,.10g} to {self.high:,.10g}"
        lowest = f"{'above' if self.above else 'at least'} {self.low:,.10g}"
        highest = f" and {'below' if self.below else 'at most'} {self.high:,.10g}"
        return lowest + (highest if self.high < math.inf else "")


@dataclass(frozen=True)
class NotEmpty:
    """Lists of one or more values."""

    def __contains__(self, values: tuple) -> bool:
        return len(values) > 0

    def __str__(self) -> str:
        return "at least one"


#: The stride of every backbone's last map and of YOLOv5's; the detectors' sizes are multiples of it.
STRIDE = 32

#: Beyond every number that makes sense, and below those that overflow.
HUGE = 1_000_000

Probability = Annotated[float, Range(0, 1)]
Share = Annotated[float, Range(0, 1, below=True)]  # of something that would vanish, or diverge, at 1
Positive = Annotated[float, Range(0, HUGE, above=True)]
NotNegative = Annotated[float, Range(0, HUGE)]
Weight = Annotated[float, Range(-HUGE, HUGE)]
Count = Annotated[int, Range(1, HUGE)]
CountOrNone = Annotated[int, Range(0, HUGE)]
Width = Annotated[int, Range(1, 16384)]  # of a layer
Side = Annotated[int, Range(STRIDE, 8192)]  # of an input in pixels; the largest radiographs have about 5,000
SideOrNone = Annotated[int, Range(0, 8192)]
Stage = Annotated[int, Range(0, 4)]  # a backbone's stage, of stride 2 ** (stage + 1)
StageCount = Annotated[int, Range(0, 5)]
Sides = Annotated[tuple[Annotated[int, Range(1, 8192)], ...], NotEmpty()]  # of anchors, in pixels
Ratios = Annotated[tuple[Annotated[float, Range(0.01, 100)], ...], NotEmpty()]  # of anchors


def inference_sizes(config: Any) -> tuple[int, ...]:
    """The sides in pixels at which a trained stage may predict: its `infer_size`, and the side it was trained at.

    The report trains Faster R-CNN at 512 and predicts at 1024; docs/presets.md has what that costs.
    """
    return tuple(dict.fromkeys((config.infer_size, config.size)))


def validation_passes(config: Any) -> float:
    """What predicting at each of `inference_sizes` costs, in passes at `infer_size`: it goes with the area."""
    return sum((side / config.infer_size) ** 2 for side in inference_sizes(config))


def _check_classifier(config: "BackboneConfig | StudyConfig", prefix: str) -> None:
    """Raise InputError where the centre crop is larger than the images that it is cut from, and for
    mosaics, which would be four images under one label."""
    if config.augment.mosaic:
        raise InputError(
            f"setting '{prefix}augment.mosaic' must be 0, not {config.augment.mosaic}: a mosaic has no label of its own"
        )
    for name in ("size", "infer_size"):
        if config.augment.crop > getattr(config, name):
            raise InputError(
                f"setting '{prefix}augment.crop' must be at most {prefix}{name}, which is {getattr(config, name)}, "
                f"not {config.augment.crop}"
            )


def _check_detector(config: "RcnnConfig | YoloConfig | RetinanetConfig", prefix: str, stride: int) -> None:
    """Raise InputError for sizes that `stride` does not divide, where maps and anchors would not lie on the image; and
    for a centre crop, after which boxes would no longer be fractions of the image."""
    for name in ("size", "infer_size"):
        size = getattr(config, name)
        if size % stride:
            smaller = max(size // stride, 1) * stride
            raise InputError(
                f"setting '{prefix}{name}' must be a multiple of {stride}, the model's largest stride, not {size}: "
                f"give {smaller} or {smaller + stride}"
            )
    if config.augment.crop:
        raise InputError(
            f"setting '{prefix}augment.crop' must be 0, not {config.augment.crop}: a detector is given whole images"
        )


@dataclass(frozen=True)
class Augment:
    """Random changes to training images; p is a probability, 0 leaves the change out."""

    hflip: Probability = 0.0  # left-right, p
    vflip: Probability = 0.0  # up-down, p
    shift_rotate: Probability = 0.0  # p of a shift with rotation
    shift: Probability = 0.0625  # of the image, at most
    degrees: Annotated[float, Range(0, 180)] = 20.0  # of rotation, at most
    scale: Share = 0.0  # of size up or down, at most
    sharpen: Probability = 0.0  # p of sharpening in a one-of with blur
    blur: Probability = 0.0  # p of blur
    brightness_contrast: Probability = 0.0  # p
    cutouts: Probability = 0.0  # p of up to six circular holes
    erase: Probability = 0.0  # p of erasing 1 to 10 % of the image
    value_gain: Share = 0.0  # brightness factor, uniform in 1 - gain to 1 + gain: what HSV jitter does to a grey image
    mixup: Probability = 0.0  # p of a blend with another image, both images' boxes kept
    crop: Annotated[int, Range(0, 8192)] = 0  # side of a centre crop in pixels, 0 for none
    resized_crop: Probability = 0.0  # p of a random part, stretched to the image's size
    crop_area: Annotated[float, Range(0, 1, above=True)] = 0.5  # of the image that such a part has, at least
    mosaic: Probability = 0.0  # p of four images in one, their boxes clipped; detectors only
    mosaic_epochs: Probability = 1.0  # share of the epochs that may have mosaics; the last ones do without
    clahe: Probability = 0.0  # p of local histogram equalisation
    rectangles: Probability = 0.0  # p of black rectangles
    rectangle_count: Annotated[int, Range(1, 64)] = 1  # so many of them
    rectangle_side: Annotated[float, Range(0, 1, above=True)] = 0.4  # of the image's side, at most


@dataclass(frozen=True)
class Training:
    """How a stage is trained."""

    epochs: Count
    batch: Count  # images per step, shared among the processes
    learning_rate: Annotated[float, Range(0, above=True)]  # at its highest; one that is too high ends the training
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    momentum: Share = 0.9
    nesterov: bool = True
    weight_decay: NotNegative = 0.0  # not on biases and norms
    schedule: Literal["cosine", "one_cycle", "constant"] = "cosine"
    floor: Probability = 0.05  # of the highest learning rate: report, equation 1
    step_epochs: CountOrNone = 2  # epochs between steps of the cosine; 0 moves at every batch
    warmup: CountOrNone = 0  # iterations of linear warm-up
    nominal_batch: CountOrNone = 0  # images per weight update by accumulation; 0 for `batch`
    clip_norm: NotNegative = 0.0  # gradients are clipped to this norm; 0 for never
    ema: Share = 0.0  # decay per update of the averaged weights; 0 for none
    patience: CountOrNone = 0  # epochs without a better validation metric before the end; 0 for never
    validate: bool = False  # measure and keep the best epoch on the held-out fold; False trains on everything
    balance: Literal["none", "oversample", "weights"] = "none"  # rare study labels are drawn, or counted, more
    head_rate: Positive = 1.0  # learning rate of what stands on a backbone, as a multiple of the backbone's


@dataclass(frozen=True)
class BackboneConfig:
    """The backbone as a classifier of the findings of NIH ChestX-ray14, before it serves the other stages."""

    training: Training
    augment: Augment
    backbone: str
    size: Side  # side of the square input in pixels, before the crop
    infer_size: Side
    infer_batch: Count

    def check_values(self, prefix: str = "") -> None:
        """Raise InputError where values do not fit each other; `prefix` stands before their names."""
        _check_classifier(self, prefix)


@dataclass(frozen=True)
class RcnnConfig:
    """Faster R-CNN."""

    training: Training
    augment: Augment
    backbone: str
    size: Side  # side of the square input in pixels, training
    infer_size: Side  # the same, inference
    infer_batch: Count
    first_stage: Stage  # finest backbone stage in the pyramid (1: stride 4, 2: stride 8)
    frozen_stages: StageCount  # backbone stages without updates, from the first
    pyramid_channels: Width
    anchor_sides: Sides  # in pixels, one per pyramid level
    anchor_ratios: Ratios = (0.5, 1.0, 2.0)
    proposals_before_nms: Count = 2000
    proposals_train: Count = 2000
    proposals: Count = 1000
    boxes_per_image: Count = 512  # sampled for the box head's loss
    head_width: Width = 1024
    box_loss: Literal["smooth_l1", "CIoU"] = "smooth_l1"  # of the box head; report, section 3.1, tried both
    score_threshold: Probability = 0.001  # the metric never punishes a low box
    nms_iou: Probability = 0.5
    max_boxes: Count = 100
    study_backbone: bool = False  # start from the backbone that the study model trained in this run
    rsna_epochs: Count = 30  # of training on the RSNA challenge first, where that is asked for; YOLO's number

    def check_values(self, prefix: str = "") -> None:
        """Raise InputError where values do not fit each other; `prefix` stands before their names."""
        _check_detector(self, prefix, STRIDE)


#: The definitions of the yolov5 package that are YOLOv5 v6: strides 8 to 32, and those of hub/ 8 to 64.
YoloArchitecture = Literal[
    "yolov5n",
    "yolov5s",
    "yolov5m",
    "yolov5l",
    "yolov5x",
    "hub/yolov5n6",
    "hub/yolov5s6",
    "hub/yolov5m6",
    "hub/yolov5l6",
    "hub/yolov5x6",
]


@dataclass(frozen=True)
class YoloConfig:
    """YOLOv5."""

    training: Training
    augment: Augment
    architecture: YoloArchitecture
    size: Side
    infer_size: Side
    infer_batch: Count
    backbone: str = ""  # a pretrained network in the place of its own first ten layers; empty for its own
    frozen_stages: StageCount = 0
    rsna_epochs: Count = 30  # of training on the RSNA challenge first; report, section 3.2
    box_loss: Literal["GIoU", "DIoU", "CIoU"] = "GIoU"  # report, section 3.2
    box_gain: NotNegative = 0.075  # report, equation 2
    class_gain: NotNegative = 0.05
    object_gain: NotNegative = 0.75
    score_threshold: Probability = 0.001
    nms_iou: Probability = 0.5
    max_boxes: Count = 100
    study_backbone: bool = False  # start from the backbone that the study model trained in this run

    @property
    def largest_stride(self) -> int:
        """Pixels of the input to one cell of the model's coarsest map, which must divide its sizes."""
        return 2 * STRIDE if self.architecture.endswith("6") else STRIDE

    def check_values(self, prefix: str = "") -> None:
        """Raise InputError where values do not fit each other; `prefix` stands before their names."""
        _check_detector(self, prefix, self.largest_stride)
        if self.backbone and self.largest_stride != STRIDE:
            raise InputError(
                f"setting '{prefix}backbone' must be empty for {self.architecture}: a backbone has no map of stride 64"
            )


@dataclass(frozen=True)
class RetinanetConfig:
    """RetinaNet, which the report names in its outlook only; defaults are those of Lin et al. 2017, section 4."""

    training: Training
    augment: Augment
    backbone: str
    size: Side  # side of the square input in pixels, training
    infer_size: Side  # the same, inference
    infer_batch: Count
    first_stage: Stage  # finest backbone stage in the pyramid (2: stride 8)
    frozen_stages: StageCount  # backbone stages without updates, from the first
    pyramid_channels: Width
    anchor_sides: Sides  # in pixels, one per pyramid level
    anchor_scales: Ratios = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))  # of each side
    anchor_ratios: Ratios = (0.5, 1.0, 2.0)  # height to width
    tower_convolutions: Annotated[int, Range(0, 4)] = 4  # of 3 x 3 before each output, 0 to 4
    tower_groups: CountOrNone = 0  # of a group norm behind each of them; 0 for no norm
    box_loss: Literal["smooth_l1", "GIoU"] = "smooth_l1"
    score_threshold: Probability = 0.001  # the metric never punishes a low box
    candidates: Count = 1000  # highest boxes of each pyramid level that are kept for the suppression
    nms_iou: Probability = 0.5
    max_boxes: Count = 100
    study_backbone: bool = False  # start from the backbone that the study model trained in this run
    rsna_epochs: Count = 30  # of training on the RSNA challenge first, where that is asked for; YOLO's number

    def check_values(self, prefix: str = "") -> None:
        """Raise InputError where values do not fit each other; `prefix` stands before their names."""
        _check_detector(self, prefix, STRIDE)
        if self.tower_groups and self.pyramid_channels % self.tower_groups:
            raise InputError(
                f"setting '{prefix}tower_groups' must divide {prefix}pyramid_channels, which is "
                f"{self.pyramid_channels}, not {self.tower_groups}"
            )


@dataclass(frozen=True)
class StudyConfig:
    """The study classifier."""

    training: Training
    augment: Augment
    backbone: str
    size: Side
    infer_size: Side
    infer_batch: Count
    hidden: Width = 1024  # report, section 3.4
    dropout: Share = 0.0
    label_smoothing: Share = 0.0
    focal: NotNegative = 0.0  # exponent gamma of the focal loss (Lin et al. 2017); 0 is cross entropy
    mask: NotNegative = 0.0  # weight of the loss of a map of the boxes, drawn beside the labels; needs frozen=False
    none: NotNegative = 0.0  # weight of the loss of a fifth output, that the image has no box; 0 leaves the output out
    hflip_tta: bool = False  # predictions are the mean over an image and its mirror image
    frozen: bool = True
    views: CountOrNone = 0  # of each image, whose features are computed once (frozen only); 0: in every epoch
    typical_images: CountOrNone = 0  # of training, kept to find an image unlike them; 0 finds none

    def check_values(self, prefix: str = "") -> None:
        """Raise InputError where values do not fit each other; `prefix` stands before their names."""
        _check_classifier(self, prefix)
        if self.mask and self.frozen:
            raise InputError(
                f"setting '{prefix}mask' teaches the backbone, which {prefix}frozen=true does not let learn: set it "
                "false, or mask 0"
            )


#: The detectors there are: models/<name>.py each.
Detector = Literal["rcnn", "yolo", "retinanet"]


@dataclass(frozen=True)
class FusionConfig:
    """Weighted boxes fusion, then non-maximum suppression (report, section 3.3)."""

    detectors: tuple[Detector, ...] = ("rcnn", "yolo")  # that run and are fused; numbers of each are in this order
    calibration: tuple[Weight, ...] = ()  # slope and intercept of each detector's logits; empty leaves scores alone
    iou: Probability = 0.55
    weights: tuple[NotNegative, ...] = (1.0, 1.0)  # of each detector
    hflip_tta: bool = False  # each detector also predicts the mirrored images
    nms_iou: Probability = 0.5
    max_boxes: Count = 100

    def of_detectors(self, name: str, each: int) -> dict[str, tuple[float, ...]]:
        """detector -> its `each` numbers of the setting `name`. Raises InputError where there are not so many."""
        values = getattr(self, name)
        if len(values) != each * len(self.detectors):
            raise InputError(
                f"fusion.{name} has {len(values)} numbers; it needs {each} for each of the detectors "
                f"{', '.join(self.detectors)}"
            )
        return {d: tuple(values[each * k : each * (k + 1)]) for k, d in enumerate(self.detectors)}


@dataclass(frozen=True)
class LateFusionConfig:
    """How the study model and the detectors correct each other (late_fusion.py); not at all by these defaults.

    fit_ensemble.py fits these numbers on out-of-fold predictions.
    """

    none: tuple[
        Weight, ...
    ] = ()  # intercept and weights of the logits that an image is empty; empty: 1 - highest score
    laterality: tuple[Weight, ...] = ()  # the same for none, one and both sides being affected; empty: left alone
    label_laterality: tuple[NotNegative, ...] = ()  # how much more often than on average these are at each study label
    label_power: NotNegative = 1.0  # of the study model's probabilities, which are multiplied with that
    opacity_none: NotNegative = 0.0  # boxes count (1 - none) to this power
    opacity_negative: NotNegative = 0.0  # and (1 - negative) to this


@dataclass(frozen=True)
class PseudoLabelConfig:
    """Fine-tuning of the detectors on test images with a confident prediction (pseudo_labels.py)."""

    epochs: CountOrNone = 0  # on train and test images together; 0 leaves it out
    score: Probability = 0.4  # boxes from this score on are taken for true
    none: Annotated[float, Range(0.5, 1)] = 0.7  # images from this `none` on are empty, up to 1 - this are not
    learning_rate: Positive = 0.3  # share of the stage's own


@dataclass(frozen=True)
class Preset:
    """A run's whole configuration."""

    name: str
    cache_size: Side  # longest side of a prepared image in pixels
    backbone: BackboneConfig
    rcnn: RcnnConfig
    yolo: YoloConfig
    retinanet: RetinanetConfig
    study: StudyConfig
    fusion: FusionConfig = field(default_factory=FusionConfig)
    late_fusion: LateFusionConfig = field(default_factory=LateFusionConfig)
    pseudo: PseudoLabelConfig = field(default_factory=PseudoLabelConfig)
    members: Count = 1  # models of each stage, a fold ensemble: each is trained without a fold of its own
    study_models: Count = 1  # without a fold ensemble: so many on the same images, each from a seed of its own
    folds: Annotated[int, Range(2)] = 5
    fold: CountOrNone = 0  # held out where a stage validates, or all do by `hold_out`
    seed: Annotated[int, Range(0, 2**32 - 1)] = 0
    repetition: CountOrNone = 0  # which of `study_models` is trained: added to the seed of its training
    duplicates: bool = True  # an image with several ids is trained on once, and never beside a fold that holds it out
    hold_out: bool = False  # no stage trains on the fold, where it has enough images to fit the ensemble on
    nih_cache_size: SideOrNone = 0  # cache_size for the images of NIH ChestX-ray14; 0: cache_size
    rsna_cache_size: SideOrNone = 0  # and for those of the RSNA challenge

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages whose predictions make a submission."""
        return (*self.fusion.detectors, "study")

    @property
    def training_seed(self) -> int:
        """Where the random numbers of a training begin; the folds depend on `seed` alone."""
        return (self.seed + self.repetition) % 2**32

    def training_order(self, stages: Iterable[str]) -> tuple[str, ...]:
        """Stages in the order of their training: the study model first where a detector starts from its backbone."""
        first = any(getattr(getattr(self, stage), "study_backbone", False) for stage in stages)
        return tuple(sorted(stages, key=lambda stage: stage != "study")) if first else tuple(stages)

    def check(self) -> "Preset":
        """The preset itself.

        Raises InputError for a value of a wrong type or out of its range, and where the numbers by which predictions
        are combined do not fit each other.

        A preset that names other detectors needs numbers for them, or none: `--set fusion.calibration=`.
        """
        overrides.check(self)
        if self.fold >= self.folds:
            raise InputError(f"setting 'fold' must be below folds, which is {self.folds}, not {self.fold}")
        if not self.fusion.detectors or len(set(self.fusion.detectors)) < len(self.fusion.detectors):
            raise InputError("setting 'fusion.detectors' must name one or more detectors, each once")
        if not any(sum(weight) for weight in self.fusion.of_detectors("weights", 1).values()):
            raise InputError("setting 'fusion.weights' must hold a number above 0")
        if self.fusion.calibration:
            self.fusion.of_detectors("calibration", 2)
        used = (*self.fusion.detectors, "negative", "none", "surer side", "other side")
        for name, wanted, of_what in (
            ("none", 1 + len(used), f"an intercept and a weight for each of {', '.join(used)}"),
            ("laterality", 12, "an intercept and three weights for each of none, one and both sides"),
            ("label_laterality", 12, "three for each study label: of none, one and both sides"),
        ):
            given = len(getattr(self.late_fusion, name))
            optional = name != "label_laterality" or not self.late_fusion.laterality
            if given != wanted and (given or not optional):
                raise InputError(f"late_fusion.{name} has {given} numbers; it needs {of_what}")
        return self


#: stage -> the dataclass of its configuration: the parts of a preset that are trained, in this order.
STAGES: dict[str, type] = {
    name: kind for name, kind in get_type_hints(Preset).items() if "training" in getattr(kind, "__annotations__", ())
}
