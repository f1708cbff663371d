"""COVID-19 detection on chest radiographs: a detector ensemble and a study classifier as one Kaggle kernel.

The data flows through the modules in this order, and every arrow is a table or a folder on disk:

    competition -> cache -> data -> models -> train -> predict -> fuse -> submission -> metric
"""

__version__ = "0.1.0"

#: The four study classes, in the order of the competition's own columns. Exactly one holds for each study.
LEVELS = ("negative", "typical", "indeterminate", "atypical")

#: The competition's column titles for LEVELS, in the same order.
LEVEL_COLUMNS = (
    "Negative for Pneumonia",
    "Typical Appearance",
    "Indeterminate Appearance",
    "Atypical Appearance",
)

#: The six classes of the competition's metric, in the order in which every table here shows them.
CLASSES = (*LEVELS, "none", "opacity")
