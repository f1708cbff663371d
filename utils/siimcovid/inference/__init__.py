"""Trained models and prepared images become one ensemble prediction.

In: models and rows of the index. Out: tables of boxes and study probabilities per model; calibrated, fused and combined
into one prediction by numbers that are fitted here on out-of-fold predictions; pseudo-labels made of it.
"""
