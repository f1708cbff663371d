"""Which images a synthetic competition has: a study label, boxes, a patient and an encoding for each.

In: a seed and the number of studies of a split. Out: a `PlannedImage` for each image, before a pixel is drawn.

Every proportion here was counted on the competition's own files (6,334 train images, 6,054 studies, 3,261 patients).
Proportions are allocated, not drawn at random: a split of 60 studies holds each study label, encoding and number of
boxes as often as its share says.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
from pydicom.uid import ExplicitVRLittleEndian, JPEGLosslessSV1

# Counts over the real train set. Studies by study label, and by study label the number of boxes on the study's boxed
# image.
LABEL_COUNTS = {"negative": 1676, "typical": 2855, "indeterminate": 1049, "atypical": 474}
BOX_COUNTS = {
    "negative": {0: 1676},
    "typical": {1: 27, 2: 2654, 3: 152, 4: 21},
    "indeterminate": {1: 685, 2: 345, 3: 17, 4: 2},
    "atypical": {0: 83, 1: 261, 2: 115, 3: 14, 4: 1},
}
#: Studies by number of images; those with several share out over the study labels as below.
IMAGE_COUNTS = {2: 207, 3: 15, 4: 4, 5: 3}
REPEATED_COUNTS = {"negative": 53, "typical": 130, "indeterminate": 42, "atypical": 7}
#: Patients by number of studies.
STUDIES_PER_PATIENT = {
    1: 2061, 2: 599, 3: 282, 4: 125, 5: 69, 6: 46, 7: 18, 8: 12, 9: 11, 10: 7, 11: 8, 12: 3, 13: 8, 14: 2, 15: 2,
    16: 2, 17: 1, 18: 1, 19: 1, 20: 2, 25: 1,
}  # fmt: skip
#: Rows x columns of the 24 commonest sizes, which cover 3 of 4 images.
SIZE_COUNTS = {
    (2336, 2836): 731, (3480, 4240): 572, (3480, 4248): 555, (3488, 4256): 485, (2544, 3056): 445, (2320, 2832): 370,
    (2800, 3408): 268, (2539, 3050): 259, (2520, 3032): 187, (2436, 3032): 185, (1140, 1387): 181, (2330, 2846): 175,
    (1760, 2140): 165, (2801, 2802): 157, (3032, 3032): 147, (2991, 2992): 123, (2540, 2880): 115, (2416, 2872): 106,
    (3052, 3052): 104, (2536, 3048): 76, (4020, 4891): 68, (2874, 2840): 65, (4240, 3480): 56, (2400, 2880): 48,
}  # fmt: skip
BITS_COUNTS = {12: 4311, 15: 1240, 8: 401, 14: 210, 16: 166, 10: 3, 13: 3}
PHOTOMETRIC_COUNTS = {"MONOCHROME2": 4633, "MONOCHROME1": 1701}
SYNTAX_COUNTS = {ExplicitVRLittleEndian: 5894, JPEGLosslessSV1: 440}
MODALITY_COUNTS = {"DX": 3242, "CR": 3092}
#: How an image is stored: field of PlannedImage -> its counts.
ENCODING_COUNTS = {
    "bits": BITS_COUNTS,
    "photometric": PHOTOMETRIC_COUNTS,
    "syntax": SYNTAX_COUNTS,
    "modality": MODALITY_COUNTS,
}


@dataclass(frozen=True)
class PlannedImage:
    """One image to write: all there is to know before its pixels are drawn."""

    split: str
    study: str
    series: str
    image: str
    patient: str
    number: int  # of the image within its study, from 0
    annotated: bool  # False for the repeats of a study, whose opacities nobody boxed
    study_label: str
    boxes: int
    shape: tuple[int, int]
    bits: int
    photometric: str
    syntax: str
    modality: str
    patient_seed: int
    study_seed: int


def allocate(rng: np.random.Generator, counts: dict, total: int) -> list:
    """`total` keys of `counts` in random order, each as often as its share of the counts (largest remainders)."""
    shares = np.array(list(counts.values())) / sum(counts.values()) * total
    times = np.floor(shares).astype(int)
    times[np.argsort(times - shares, kind="stable")[: total - times.sum()]] += 1
    allocated = [key for key, n in zip(counts, times, strict=True) for _ in range(n)]
    return [allocated[i] for i in rng.permutation(total)]


def identifier(*parts: object) -> str:
    """12 hexadecimal digits, as the competition has where a UID, a patient or a date should stand."""
    return hashlib.sha256("/".join(map(str, parts)).encode()).hexdigest()[:12]


def _patients(rng: np.random.Generator, studies: int) -> list[int]:
    """The number of each study's patient: patients per study, and studies per patient, are as counted."""
    patients = max(round(studies * 3261 / 6054), 1)
    sizes = np.sort(allocate(rng, STUDIES_PER_PATIENT, patients))[::-1]
    while sizes.sum() != studies:  # a few patients with many studies make the sum miss
        most = int(np.argmax(sizes))
        if sizes.sum() > studies:
            sizes[most] -= 1
        else:
            sizes[int(rng.integers(patients))] += 1
    return list(rng.permutation(np.repeat(np.arange(patients), sizes)))


def plan_split(seed: int, split: str, studies: int, scale: float) -> list[PlannedImage]:
    """Every image of a split, in the order in which they are drawn.

    split: "train" or "test". studies: how many. scale: of the images' sides, 1 for those of the real ones.
    """
    rng = np.random.default_rng([seed, {"train": 1, "test": 2}[split]])
    study_labels = allocate(rng, LABEL_COUNTS, studies)
    patients = _patients(rng, studies)
    box_counts = {
        study_label: allocate(rng, BOX_COUNTS[study_label], study_labels.count(study_label))
        for study_label in LABEL_COUNTS
    }
    image_counts = _images_per_study(rng, study_labels)
    shapes = allocate(rng, SIZE_COUNTS, studies)
    encodings = {name: allocate(rng, counts, int(image_counts.sum())) for name, counts in ENCODING_COUNTS.items()}
    images = []
    for i in range(studies):
        key = (seed, split, i)
        patient = (seed, split, patients[i])
        study_seed, annotated = int(rng.integers(2**31)), int(rng.integers(image_counts[i]))
        boxes = box_counts[study_labels[i]].pop()
        images += [
            PlannedImage(
                split=split,
                study=identifier("study", *key),
                series=identifier("series", *key, number),
                image=identifier("image", *key, number),
                patient=identifier("patient", *patient),
                number=number,
                annotated=number == annotated,
                study_label=study_labels[i],
                boxes=boxes,
                shape=tuple(max(2 * round(side * scale / 2), 64) for side in shapes[i]),
                patient_seed=int(identifier("anatomy", *patient), 16),
                study_seed=study_seed,
                **{name: values.pop() for name, values in encodings.items()},
            )
            for number in range(image_counts[i])
        ]
    return images


def _images_per_study(rng: np.random.Generator, study_labels: list[str]) -> np.ndarray:
    """How many images each study has: 1, or for as many studies of each study label as were counted, 2 to 5."""
    studies = len(study_labels)
    repeated = round(studies * sum(REPEATED_COUNTS.values()) / sum(LABEL_COUNTS.values()))
    image_counts = np.ones(studies, int)
    repeat_counts = allocate(rng, IMAGE_COUNTS, repeated)
    for study_label in allocate(rng, REPEATED_COUNTS, repeated):
        single = [i for i in range(studies) if study_labels[i] == study_label and image_counts[i] == 1]
        if single:
            image_counts[rng.choice(single)] = repeat_counts.pop()
    return image_counts
