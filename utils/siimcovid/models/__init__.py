"""The networks and their files: Faster R-CNN, YOLOv5, RetinaNet, the study classifier and their backbone.

In: a stage of the configuration. Out: a torch module with `forward(batch) -> losses` and `predict(images)`; checkpoints
that can rebuild their model; a weights folder whose manifest holds each file's checksum and origin.
"""

from siimcovid.core import opencv  # noqa: F401  # fails with a sentence where OpenCV cannot be loaded
