"""What can be set: a preset is a tree of these frozen dataclasses.

presets.py holds the numbers of the two presets; overrides.py changes single values, and carries the tree through JSON,
beside each checkpoint. This module imports no torch.
"""

from dataclasses import dataclass, field
from typing import Literal, get_type_hints

from siimcovid.core.errors import InputError


@dataclass(frozen=True)
class Augment:
    """Random changes to training images; p is a probability, 0 leaves the change out."""

    hflip: float = 0.0  # left-right, p
    vflip: float = 0.0  # up-down, p
    shift_rotate: float = 0.0  # p of a shift with rotation
    shift: float = 0.0625  # of the image, at most
    degrees: float = 20.0  # of rotation, at most
    scale: float = 0.0  # of size up or down, at most
    sharpen: float = 0.0  # p of sharpening in a one-of with blur
    blur: float = 0.0  # p of blur
    brightness_contrast: float = 0.0  # p
    cutouts: float = 0.0  # p of up to six circular holes
    erase: float = 0.0  # p of erasing 1 to 10 % of the image
    value_gain: float = 0.0  # brightness factor, uniform in 1 - gain to 1 + gain: what HSV jitter does to a grey image
    mixup: float = 0.0  # p of a blend with another image, both images' boxes kept
    crop: int = 0  # side of a centre crop in pixels, 0 for none


@dataclass(frozen=True)
class Training:
    """How a stage is trained."""

    epochs: int
    batch: int  # images per step and process
    learning_rate: float  # at its highest
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 0.0  # not on biases and norms
    schedule: Literal["cosine", "one_cycle", "constant"] = "cosine"
    floor: float = 0.05  # of the highest learning rate: report, equation 1
    step_epochs: int = 2  # epochs between steps of the cosine; 0 moves at every batch
    warmup: int = 0  # iterations of linear warm-up
    nominal_batch: int = 0  # images per weight update by accumulation; 0 for `batch`
    clip_norm: float = 0.0  # gradients are clipped to this norm; 0 for never
    ema: float = 0.0  # decay per update of the averaged weights; 0 for none
    patience: int = 0  # epochs without a better validation metric before the end; 0 for never
    validate: bool = False  # measure and keep the best epoch on the held-out fold; False trains on everything
    balance: Literal["none", "oversample", "weights"] = (
        "none"  # of study labels: rare ones drawn or counted more (study)
    )


@dataclass(frozen=True)
class BackboneConfig:
    """The backbone as a classifier of the findings of NIH ChestX-ray14, before it serves the other stages."""

    training: Training
    augment: Augment
    backbone: str
    size: int  # side of the square input in pixels, before the crop
    infer_size: int
    infer_batch: int


@dataclass(frozen=True)
class RcnnConfig:
    """Faster R-CNN."""

    training: Training
    augment: Augment
    backbone: str
    size: int  # side of the square input in pixels, training
    infer_size: int  # the same, inference
    infer_batch: int
    first_stage: int  # finest backbone stage in the pyramid (1: stride 4, 2: stride 8)
    frozen_stages: int  # backbone stages without updates, from the first
    pyramid_channels: int
    anchor_sides: tuple[int, ...]  # in pixels, one per pyramid level
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    proposals_before_nms: int = 2000
    proposals_train: int = 2000
    proposals: int = 1000
    boxes_per_image: int = 512  # sampled for the box head's loss
    head_width: int = 1024
    box_loss: Literal["smooth_l1", "CIoU"] = "smooth_l1"  # of the box head; report, section 3.1, tried both
    score_threshold: float = 0.001  # the metric never punishes a low box
    nms_iou: float = 0.5
    max_boxes: int = 100


@dataclass(frozen=True)
class YoloConfig:
    """YOLOv5."""

    training: Training
    augment: Augment
    architecture: str  # of the yolov5 package
    size: int
    infer_size: int
    infer_batch: int
    backbone: str = ""  # a pretrained network in the place of its own first ten layers; empty for its own
    frozen_stages: int = 0
    rsna_epochs: int = 30  # of training on the RSNA challenge first; report, section 3.2
    box_loss: Literal["GIoU", "DIoU", "CIoU"] = "GIoU"  # report, section 3.2
    box_gain: float = 0.075  # report, equation 2
    class_gain: float = 0.05
    object_gain: float = 0.75
    score_threshold: float = 0.001
    nms_iou: float = 0.5
    max_boxes: int = 100


@dataclass(frozen=True)
class RetinanetConfig:
    """RetinaNet, which the report names in its outlook only; defaults are those of Lin et al. 2017, section 4."""

    training: Training
    augment: Augment
    backbone: str
    size: int  # side of the square input in pixels, training
    infer_size: int  # the same, inference
    infer_batch: int
    first_stage: int  # finest backbone stage in the pyramid (2: stride 8)
    frozen_stages: int  # backbone stages without updates, from the first
    pyramid_channels: int
    anchor_sides: tuple[int, ...]  # in pixels, one per pyramid level
    anchor_scales: tuple[float, ...] = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))  # of each side
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)  # height to width
    tower_convolutions: int = 4  # of 3 x 3 before each output, 0 to 4
    tower_groups: int = 0  # of a group norm behind each of them; 0 for no norm
    box_loss: Literal["smooth_l1", "GIoU"] = "smooth_l1"
    score_threshold: float = 0.001  # the metric never punishes a low box
    candidates: int = 1000  # highest boxes of each study label that the suppression looks at
    nms_iou: float = 0.5
    max_boxes: int = 100


@dataclass(frozen=True)
class StudyConfig:
    """The study classifier."""

    training: Training
    augment: Augment
    backbone: str
    size: int
    infer_size: int
    infer_batch: int
    hidden: int = 1024  # report, section 3.4
    dropout: float = 0.0
    label_smoothing: float = 0.0
    focal: float = 0.0  # exponent gamma of the focal loss (Lin et al. 2017); 0 is cross entropy
    mask: float = (
        0.0  # share of the loss that is for a map of the boxes, drawn beside the study labels; needs frozen=False
    )
    none: float = 0.0  # weight of the loss of a fifth output, that the image has no box; 0 leaves the output out
    hflip_tta: bool = False  # predictions are the mean over an image and its mirror image
    frozen: bool = True
    views: int = 0  # augmented views whose features are computed once (frozen only); 0 runs the backbone every epoch


#: The detectors there are: models/<name>.py each.
Detector = Literal["rcnn", "yolo", "retinanet"]


@dataclass(frozen=True)
class FusionConfig:
    """Weighted boxes fusion, then non-maximum suppression (report, section 3.3)."""

    detectors: tuple[Detector, ...] = (
        "rcnn",
        "yolo",
    )  # that run and are fused; what is per detector follows this order
    calibration: tuple[float, ...] = ()  # slope and intercept of each detector's logits; empty leaves scores alone
    iou: float = 0.55
    weights: tuple[float, ...] = (1.0, 1.0)  # of each detector
    hflip_tta: bool = False  # the ensemble hears each detector twice, the second time on mirrored images
    nms_iou: float = 0.5
    max_boxes: int = 100

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

    none: tuple[float, ...] = ()  # intercept and weights of the logits that an image is empty; empty: 1 - highest score
    laterality: tuple[
        float, ...
    ] = ()  # the same for none, one and both sides being affected; empty: study labels are left alone
    label_laterality: tuple[float, ...] = ()  # how much more often than on average these are at each study label
    label_power: float = 1.0  # of the study model's probabilities, which are multiplied with that
    opacity_none: float = 0.0  # boxes count (1 - none) to this power
    opacity_negative: float = 0.0  # and (1 - negative) to this


@dataclass(frozen=True)
class PseudoLabelConfig:
    """Fine-tuning of the detectors on test images with a confident prediction (pseudo_labels.py)."""

    epochs: int = 0  # on train and test images together; 0 leaves it out
    score: float = 0.4  # boxes from this score on are taken for true
    none: float = 0.7  # images from this confidence in `none` for empty, up to 1 - this for full
    learning_rate: float = 0.3  # share of the stage's own


@dataclass(frozen=True)
class Preset:
    """A run's whole configuration."""

    name: str
    cache_size: int  # longest side of a prepared image in pixels
    backbone: BackboneConfig
    rcnn: RcnnConfig
    yolo: YoloConfig
    retinanet: RetinanetConfig
    study: StudyConfig
    fusion: FusionConfig = field(default_factory=FusionConfig)
    late_fusion: LateFusionConfig = field(default_factory=LateFusionConfig)
    pseudo: PseudoLabelConfig = field(default_factory=PseudoLabelConfig)
    members: int = 1  # models of each stage, a fold ensemble: each is trained without a fold of its own
    folds: int = 5
    fold: int = 0  # held out where a stage validates
    seed: int = 0
    duplicates: bool = True  # an image with several ids is trained on once, and never beside a fold that holds it out

    @property
    def stages(self) -> tuple[str, ...]:
        """The models whose answers make a submission."""
        return (*self.fusion.detectors, "study")

    def check(self) -> "Preset":
        """The preset itself. Raises InputError where the numbers by which answers are combined do not fit each other.

        A preset that names other detectors needs numbers for them, or none: `--set fusion.calibration=`.
        """
        self.fusion.of_detectors("weights", 1)
        if self.fusion.calibration:
            self.fusion.of_detectors("calibration", 2)
        used = (*self.fusion.detectors, "negative", "none")
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
