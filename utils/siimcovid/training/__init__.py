"""One loop for all stages, and what repeats it: several GPUs, models side by side, folds, and a search over settings.

In: a stage of the configuration, rows of the index, the cache, weights to start from. Out: a checkpoint with its
metrics; out-of-fold predictions of every image; the best settings of a search.
"""
