"""Names of the stages and of the models that a stage has in a fold ensemble, without importing torch.

A model's name is its stage ("rcnn"), with the member's number behind a point from the second member on ("rcnn.1"), and
"_hflip" at the end where it predicted mirrored images ("rcnn.1_hflip"). Checkpoints are called <name>.safetensors.
"""

import re
from typing import get_args

from siimcovid.core.configuration import Detector
from siimcovid.core.presets import FULL

#: The detectors there are; preset.fusion.detectors says which of them run.
DETECTORS: tuple[str, ...] = get_args(Detector)

#: The stages whose models make a submission of the report's system.
SUBMISSION_STAGES = FULL.stages


def member(stage: str, number: int) -> str:
    """Name of member `number` (from 0) of a stage's fold ensemble: "rcnn", "rcnn.1", "rcnn.2" and so on."""
    return f"{stage}.{number}" if number else stage


def stage_of(name: str) -> str:
    """The stage of a model's name: "rcnn" of "rcnn", "rcnn.1" and "rcnn.1_hflip"."""
    return re.sub(r"(\.\d+)?(_hflip)?$", "", name)
