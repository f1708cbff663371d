"""Other people's ways to train beside ours, with the same images, cores, minutes and scorer: `siimcovid bench --peers`.

In: a competition folder with its ground truth beside it. Out: a table (compare_peers.py says which files). Each
contender trains and predicts in a process of its own, one after the other, on the CPU with the same number of threads:

    peer_job.py  --peer_child.py-->  predictions.csv, outcome.json  --compare_peers.py-->  scores

A child never gets the test images' boxes and study labels.
"""

from typing import NamedTuple


class Contender(NamedTuple):
    """One way to train.

    title: what the table says. module: of this package, whose `contend` trains and predicts. stage: of ours, whose kind
    of model it is: `study` or a detector. start: the weights that it starts from, RANDOM or IMAGENET.
    """

    title: str
    module: str
    stage: str
    start: str


RANDOM, IMAGENET = "random", "ImageNet"

#: Name -> contender, in the order of the table.
CONTENDERS = {
    "yolov5": Contender("yolov5's own trainer, `yolov5n`", "yolov5_trainer", "yolo", RANDOM),
    "torchvision": Contender("torchvision's recipe, MobileNetV3 320 FPN", "torchvision_reference", "rcnn", RANDOM),
    "yolo": Contender("ours, `small` YOLO", "ours", "yolo", IMAGENET),
    "yolo_random": Contender("ours, `small` YOLO", "ours", "yolo", RANDOM),
    "rcnn": Contender("ours, `small` Faster R-CNN", "ours", "rcnn", IMAGENET),
    "rcnn_random": Contender("ours, `small` Faster R-CNN", "ours", "rcnn", RANDOM),
    "classifier": Contender("plain fine-tuned EfficientNet-Lite0", "plain_classifier", "study", IMAGENET),
    "study": Contender("ours, `small` study model", "ours", "study", IMAGENET),
    "study_random": Contender("ours, `small` study model", "ours", "study", RANDOM),
}
