"""The heat map of the study model: Grad-CAM (Selvaraju et al. 2017) by captum, as a translucent picture.

Grad-CAM needs the gradient from the study label's logit back to the backbone's last maps, which is the head's alone.
"""

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from captum.attr import LayerGradCam
from torch import Tensor, nn

from siimcovid.core.configuration import StudyConfig
from siimcovid.data.resize import centre_crop, resize_to_square
from siimcovid.models.backbone import normalise

#: Side in pixels of the picture; the browser stretches it over the image. The map itself has about ten.
SIDE = 160


class Tail(nn.Module):
    """What follows the backbone of a Study: maps (1, C, h, w) -> logits (1, 4)."""

    def __init__(self, head: nn.Module):
        super().__init__()
        self.maps, self.head = nn.Identity(), head

    def forward(self, maps: Tensor) -> Tensor:
        return self.head(self.maps(maps).mean(dim=(2, 3)))


def heat_map(studies: Sequence[tuple[StudyConfig, nn.Module]], image: np.ndarray, study_label: int) -> bytes:
    """The picture of a study label's heat map, the mean of the study models'.

    studies: configuration and network of each, in PyTorch and made for inference; members of a fold ensemble have one
    configuration.
    image: uint8 (rows, columns). study_label: its place in STUDY_LABELS.
    """
    heats = []
    for config, network in studies:
        square = centre_crop(resize_to_square(image, config.infer_size), config.augment.crop)
        device = next(network.parameters()).device
        pixels = torch.from_numpy(np.ascontiguousarray(square))[None, None].to(device)
        with torch.no_grad(), torch.autocast(device.type, enabled=device.type == "cuda"):
            maps = network.backbone(normalise(pixels))[-1]
        heats.append(grad_cam(network.head, maps.float(), study_label))
    first = studies[0][0]
    share = first.augment.crop / first.infer_size if first.augment.crop else 1.0
    return as_picture(np.mean([cv2.resize(heat, heats[0].shape[::-1]) for heat in heats], axis=0), share)


def grad_cam(head: nn.Module, maps: Tensor, study_label: int) -> np.ndarray:
    """How much each place of `maps` (1, C, h, w) raises the logit of `study_label`: (h, w), 0 to 1, the highest 1; or 0
    everywhere."""
    tail = Tail(head)
    with torch.enable_grad():
        heat = LayerGradCam(tail, tail.maps).attribute(maps.clone(), target=study_label, relu_attributions=True)
    heat = heat[0, 0].detach().float().cpu().numpy()
    return heat / max(float(heat.max()), np.finfo(np.float32).tiny)


def as_picture(heat: np.ndarray, share: float = 1.0) -> bytes:
    """A PNG with transparency, to be stretched over the whole image: nothing where heat is 0, bright where it is 1.

    heat: (h, w), 0 to 1. share: of each of the image's sides that the model gets (a centre crop).
    """
    inner = round(SIDE * share)
    margin = (SIDE - inner) // 2
    whole = np.zeros((SIDE, SIDE), np.float32)
    smooth = cv2.resize(heat.astype(np.float32), (inner, inner), interpolation=cv2.INTER_CUBIC).clip(0, 1)
    whole[margin : margin + inner, margin : margin + inner] = smooth
    colours = cv2.applyColorMap((whole * 255).astype(np.uint8), cv2.COLORMAP_INFERNO)
    opacity = (np.minimum(whole * 1.5, 1) * 160).astype(np.uint8)
    return cv2.imencode(".png", np.dstack([colours, opacity]))[1].tobytes()
