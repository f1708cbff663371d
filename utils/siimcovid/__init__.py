"""COVID-19 detection on chest radiographs: a detector ensemble and a study classifier as one Kaggle kernel.

Folders, lowest layer first; each imports only from those before it:

    core <- data <- models <- evaluation <- inference <- training <- kernel <- (kaggle, reporting) <- apps

`synthetic` draws the demo competition and sees `core` and `data` alone.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from siimcovid.inference.trained_model import TrainedModel

__version__ = "0.1.0"


def load(folder: "Path | str") -> "TrainedModel":
    """The trained models of a weights folder: `siimcovid.load("runs/demo/weights").predict("image.dcm")`.

    Torch is imported here, not with the package. Raises InputError where the folder holds no trained model.
    """
    from siimcovid.inference import trained_model

    return trained_model.load(folder)
