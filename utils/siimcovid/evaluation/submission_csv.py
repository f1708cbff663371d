"""The competition's submission file: the only place where fractions of an image become pixels, and back to arrays.

In:  the sample submission (its ids and header), the study labels table (study_id and a probability for each of
     STUDY_LABELS), a `none` confidence by image id, the fused detections (image_id, score, x1, y1, x2, y2 as fractions
     of the original image) and the index (image_id, rows, columns).
Out: `submission.csv`: header and ids as in the sample, each PredictionString a run of tuples
     `label confidence xmin ymin xmax ymax`, separated by spaces, boxes in pixels of the original image. A study row
     holds all four study labels, an image row `none` and every opacity, however low its confidence: the metric ranks
     the confidences, so a cut could only lose. Labels without a place carry the competition's dummy box `0 0 1 1`.

`parse_predictions` reads such strings (and the truth's `label` column, which has the same form) into arrays.
"""

from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from siimcovid.core.errors import InputError
from siimcovid.core.files import write_text
from siimcovid.core.labels import CLASSES, STUDY_LABELS

STUDY, IMAGE = "_study", "_image"
BOX_COLUMNS = ["score", "x1", "y1", "x2", "y2"]

#: Eight decimals keep float32 confidences apart near 1 and at the detectors' lowest; a tie costs average precision.
DUMMY_TUPLE = "%s %.8f 0 0 1 1"
OPACITY_TUPLE = " opacity %.8f %.2f %.2f %.2f %.2f"
CODES = {name: code for code, name in enumerate(CLASSES)}


class Predictions(NamedTuple):
    """The tuples of many PredictionStrings, in the order of the file."""

    row: np.ndarray  # (n,) int64: index of the PredictionString
    label: np.ndarray  # (n,) int8: index in CLASSES
    confidence: np.ndarray  # (n,) float64
    xyxy: np.ndarray  # (n, 4) float64: xmin ymin xmax ymax in pixels

    def of(self, name: str) -> "Predictions":
        """Only the tuples of one class."""
        keep = np.flatnonzero(self.label == CODES[name])
        return Predictions(*(part[keep] for part in self))


@dataclass(frozen=True)
class Priors:
    """What is submitted for a study or image that no model predicted: the train set's frequencies."""

    study_probs: Mapping[str, float]  # a probability for each of STUDY_LABELS
    none: float  # share of images without a box


#: Of the competition's train set (counted on its own CSVs), where no train part is at hand.
COMPETITION_PRIORS = Priors(
    {"negative": 1676 / 6054, "typical": 2855 / 6054, "indeterminate": 1049 / 6054, "atypical": 474 / 6054},
    none=2040 / 6334,
)


def train_priors(images: pd.DataFrame) -> Priors:
    """Frequencies in the index's train split, of study labels over studies and of no box over images.

    images: split, study_id, study label, boxes. Raises InputError where the index has no train images.
    """
    train = images[images["split"] == "train"]
    if train.empty:
        raise InputError("the index has no train images to take frequencies from; give the priors yourself")
    study_probs = train.drop_duplicates("study_id")["study_label"].value_counts(normalize=True)
    none = float((train["boxes"].map(len) == 0).mean())
    return Priors({name: float(study_probs.get(name, 0.0)) for name in STUDY_LABELS}, none)


def study_row(probabilities: Sequence[float]) -> str:
    """PredictionString of a study from its four probabilities, in the order of STUDY_LABELS."""
    return " ".join(DUMMY_TUPLE % pair for pair in zip(STUDY_LABELS, probabilities, strict=True))


def image_row(none: float, boxes: np.ndarray, size: tuple[int, int]) -> str:
    """PredictionString of an image.

    none: confidence that the image has no opacity. boxes: (n, 5) confidence, x1, y1, x2, y2 in fractions of the image.
    size: the original image's (rows, columns) in pixels.
    """
    return DUMMY_TUPLE % ("none", none) + (OPACITY_TUPLE * len(boxes)) % tuple(to_pixels(boxes, size).ravel().tolist())


def to_pixels(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(n, 5) confidence and xyxy fractions -> confidence and xyxy pixels, rounded to two decimals.

    Boxes are clipped to the image. A box thinner than a hundredth of a pixel is given that width, so that xmin < xmax
    and ymin < ymax hold in the file's decimals too.
    """
    rows, columns = size
    pixels = np.array(boxes, dtype=float).reshape(-1, 5)
    for low, high, extent in ((1, 3, columns), (2, 4, rows)):
        end = 100 * extent
        pixels[:, low] = np.rint(np.clip(pixels[:, low], 0, 1) * end).clip(max=end - 1)
        pixels[:, high] = np.maximum(np.rint(np.clip(pixels[:, high], 0, 1) * end), pixels[:, low] + 1)
    pixels[:, 1:] /= 100
    return pixels


def write_submission(
    sample: pd.DataFrame,
    study_probs: pd.DataFrame,
    none: pd.Series,
    detections: pd.DataFrame,
    images: pd.DataFrame,
    path: Path | str,
    priors: Priors,
) -> list[str]:
    """Write one row for every id of the sample, in the sample's order and under its header.

    The tables are those of the module's docstring; rows that are not finite count as absent. A study without
    probabilities gets `priors.study_probs`, an image without a `none` confidence `priors.none`, and an image of unknown
    size (rows 0, or not in `images`) no boxes. Returns the sample ids that were answered by priors. Raises InputError
    for a sample id of neither kind.
    """
    known_labels = _finite(study_probs.set_index("study_id")[list(STUDY_LABELS)])
    label_of = dict(zip(known_labels.index, known_labels.to_numpy().tolist(), strict=True))
    none_of = none[np.isfinite(none.to_numpy(dtype=float))].to_dict()
    size_of = dict(zip(images["image_id"], images[["rows", "columns"]].to_numpy().tolist(), strict=True))
    boxes_of = _boxes_by_image(detections)
    prior_study_probs = [priors.study_probs[name] for name in STUDY_LABELS]
    no_boxes = np.empty((0, 5))

    lines, by_priors = [",".join(sample.columns)], []
    for identifier in sample["id"]:
        if identifier.endswith(STUDY):
            name = identifier.removesuffix(STUDY)
            absent = name not in label_of
            text = study_row(prior_study_probs if absent else label_of[name])
        elif identifier.endswith(IMAGE):
            name = identifier.removesuffix(IMAGE)
            absent = name not in none_of
            rows, columns = size_of.get(name, (0, 0))
            boxes = boxes_of.get(name, no_boxes) if rows > 0 and columns > 0 else no_boxes
            text = image_row(priors.none if absent else none_of[name], boxes, (rows, columns))
        else:
            raise InputError(f"the sample's id {identifier!r} ends neither in {STUDY} nor in {IMAGE}")
        if absent:
            by_priors.append(identifier)
        lines.append(f"{identifier},{text}")
    write_text(path, "\n".join(lines) + "\n")
    return by_priors


def prior_submission(sample: pd.DataFrame, path: Path | str, priors: Priors) -> None:
    """A valid submission that knows nothing but the train set's frequencies."""
    nothing = pd.DataFrame(columns=["study_id", "image_id", "rows", "columns", *STUDY_LABELS, *BOX_COLUMNS])
    write_submission(sample, nothing, pd.Series(dtype=float), nothing, nothing, path, priors)


def _finite(table: pd.DataFrame) -> pd.DataFrame:
    return table[np.isfinite(table.to_numpy(dtype=float)).all(axis=1)]


def _boxes_by_image(detections: pd.DataFrame) -> dict[str, np.ndarray]:
    """Image id -> (n, 5) confidence and xyxy fractions, highest confidence first."""
    table = _finite(detections.set_index("image_id")[BOX_COLUMNS])
    codes, names = pd.factorize(table.index)
    values = table.to_numpy(dtype=float)
    order = np.lexsort((-values[:, 0], codes))
    values, ends = values[order], np.cumsum(np.bincount(codes, minlength=len(names)))
    return dict(zip(names, np.split(values, ends[:-1]), strict=True)) if len(names) else {}


def read_table(path: Path | str, columns: Sequence[str]) -> pd.DataFrame:
    """Read a CSV (plain or gzipped) as text, empty fields as "". Raises InputError where a column is missing."""
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:  # pandas' parser and empty-file errors are ValueErrors
        raise InputError(f"cannot read {path} as a CSV: {error}") from error
    missing = [name for name in columns if name not in table.columns]
    if missing:
        raise InputError(f"{path} has no column {', '.join(missing)}; it has {', '.join(table.columns)}")
    return table


def parse_predictions(ids: Iterable[str], strings: Iterable[str]) -> Predictions:
    """PredictionStrings -> arrays, in file order; an empty string holds no tuple.

    Raises InputError, naming the id, where a string is no run of six-tuples of a known label and five finite numbers.
    """
    codes, values, lengths = bytearray(), array("d"), []
    for identifier, text in zip(ids, strings, strict=True):
        tokens = text.split()
        if len(tokens) % 6:
            raise InputError(f"{identifier}: {len(tokens)} values are no run of six-tuples; see `siimcovid validate`")
        try:
            codes.extend(map(CODES.__getitem__, tokens[::6]))
            lengths.append(len(tokens) // 6)
            del tokens[::6]
            values.extend(map(float, tokens))
        except KeyError as error:
            raise InputError(f"{identifier}: unknown label {error}; the labels are {', '.join(CLASSES)}") from None
        except ValueError as error:
            raise InputError(f"{identifier}: {error}; see `siimcovid validate`") from None
    numbers = np.frombuffer(values, dtype=float).reshape(-1, 5)
    row = np.repeat(np.arange(len(lengths)), lengths)
    if not np.isfinite(numbers).all():
        bad = row[np.flatnonzero(~np.isfinite(numbers).all(axis=1))[0]]
        raise InputError(f"PredictionString {bad + 1} holds a number that is not finite; see `siimcovid validate`")
    return Predictions(row, np.frombuffer(codes, dtype=np.int8), numbers[:, 0], numbers[:, 1:])
