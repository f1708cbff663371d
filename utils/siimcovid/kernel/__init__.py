"""What the notebook calls: the steps of one run from its parameters to submission.csv.

In: the notebook's parameters. Out, in one folder: submission.csv, the trained weights, the scores where the ground
truth is at hand, and run.json, the record of what was planned, done, dropped and recovered from.
"""
