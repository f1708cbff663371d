"""The networks: a backbone and its classifier, Faster R-CNN, YOLOv5 and the study classifier."""
