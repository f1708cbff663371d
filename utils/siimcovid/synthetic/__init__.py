"""Draws synthetic chest radiographs and writes them in the competition's, NIH's or RSNA's layout.

In: a seed and the number of studies. Out: a competition folder of DICOM files and CSVs, with the held-back ground truth
beside it in `<folder>.truth/`.
"""

from siimcovid.core import opencv  # noqa: F401  # fails with a sentence where OpenCV cannot be loaded
