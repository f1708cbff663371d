"""A folder of DICOM files becomes an index, a cache of 8-bit images, and samples for training.

In: the folder of a competition, of NIH ChestX-ray14 or of the RSNA challenge. Out: the index (a row an image: ids,
patient, path, size, boxes, study label), upright 8-bit PNGs at the working size, folds by patient, and a Dataset of
augmented square tensors.
"""

from siimcovid.core import opencv  # noqa: F401  # fails with a sentence where OpenCV cannot be loaded
