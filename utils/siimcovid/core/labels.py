"""Names of what is predicted: the competition's study labels and classes, and the findings of NIH ChestX-ray14."""

#: The four study labels, in the order of the competition's own columns. Exactly one is set for each study.
STUDY_LABELS = ("negative", "typical", "indeterminate", "atypical")

#: The competition's column titles for STUDY_LABELS, in the same order.
STUDY_COLUMNS = (
    "Negative for Pneumonia",
    "Typical Appearance",
    "Indeterminate Appearance",
    "Atypical Appearance",
)

#: The six classes of the competition's metric, in the order in which every table here shows them.
CLASSES = (*STUDY_LABELS, "none", "opacity")

#: The labels of NIH ChestX-ray14 (report, section 2.1), in alphabetical order, "No Finding" last.
NIH_FINDINGS = (
    *("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Effusion", "Emphysema", "Fibrosis", "Hernia"),
    *("Infiltration", "Mass", "Nodule", "Pleural_Thickening", "Pneumonia", "Pneumothorax", "No Finding"),
)
