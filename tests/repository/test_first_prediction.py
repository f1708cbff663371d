"""What a new machine must be able to do, from the command to a prediction: DICOM in, boxes and probabilities out."""

import cv2
import torch

from siimcovid.apps.command_line import main
from siimcovid.core.stage_names import SUBMISSION_STAGES
from siimcovid.data.dicom_image import read_image
from siimcovid.models import checkpoints
from support.tiny_weights import SIDE, write_weights


def test_a_dicom_file_gets_boxes_and_probabilities(tmp_path, capsys):
    arguments = ["--train-studies", "2", "--test-studies", "1", "--scale", "0.05", "--workers", "1"]
    assert main(["synthetic", str(tmp_path / "competition"), *arguments]) == 0
    path = sorted((tmp_path / "competition" / "test").rglob("*.dcm"))[0]
    image = torch.from_numpy(cv2.resize(read_image(path), (SIDE, SIDE)))[None, None]
    weights = write_weights(tmp_path / "weights")
    assert main(["weights", "verify", str(weights)]) == 0
    for stage in SUBMISSION_STAGES:
        _, _, model = checkpoints.load(weights / f"{stage}.safetensors")
        with torch.inference_mode():
            answer = model.eval().predict(image)
        if stage == "study":
            assert answer.shape[0] == 1
            assert answer.isfinite().all()
        else:
            ((boxes, scores),) = answer
            assert boxes.shape == (len(scores), 4)
            assert ((boxes >= 0) & (boxes <= 1)).all()
