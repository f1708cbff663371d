"""COVID-19 detection on chest radiographs: a detector ensemble and a study classifier as one Kaggle kernel.

Folders, lowest layer first; each imports only from those before it:

    core <- data <- models <- evaluation <- inference <- training <- kernel <- (kaggle, reporting) <- apps

`synthetic` draws the demo competition and sees `core` and `data` alone.
"""

__version__ = "0.1.0"
