"""Draws chest radiographs and lays them out as the competition, NIH or RSNA do: data for the demo and the tests.

In: a seed and the number of studies. Out: a competition folder of DICOM files and CSVs, with the held-back ground truth
beside it in `<folder>.truth/`.
"""

from siimcovid.core import opencv  # noqa: F401  # fails with a sentence where OpenCV cannot be loaded
