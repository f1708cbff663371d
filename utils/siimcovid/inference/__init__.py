"""Trained models and images become one ensemble prediction.

In: models and rows of the index, or the image files that people name. Out: tables of boxes and study probabilities per
model; calibrated, fused and corrected by late fusion with numbers that are fitted here on out-of-fold predictions;
pseudo-labels made of them; and the files of `siimcovid predict`.

`predictor.py` runs one model over batches, mirrored images included; `ensemble.py` joins the models' answers;
`trained_model.py` is the interface from Python (`siimcovid.load`).
"""

from siimcovid.core import opencv  # noqa: F401  # fails with a sentence where OpenCV cannot be loaded
