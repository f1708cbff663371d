"""How good predictions are: the official six-class mean average precision, the report's tables, and submission.csv.

In: boxes, `none` confidences and study probabilities; the ground truth. Out: submission.csv in pixels, its validation
against the sample, and the scores.
"""
