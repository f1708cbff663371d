"""The feature pyramid under Faster R-CNN and RetinaNet (Lin et al. 2017, "Feature Pyramid Networks").

In: (B, 3, S, S) normalised images. Out: the backbone's later maps, brought to one width, and coarser ones behind them.
"""

from collections import OrderedDict

from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from siimcovid.core.configuration import RcnnConfig, RetinanetConfig
from siimcovid.core.errors import InputError
from siimcovid.models.backbone import build_backbone, freeze_batch_norm


class Pyramid(nn.Module):
    """A backbone with frozen norms and its feature pyramid: one level for each of the configuration's anchor sides.

    Of L levels, 5 - first_stage are the backbone's. One more is the last of them pooled (Faster R-CNN); two more are
    convolutions of the backbone's last map, with stride 2 each (RetinaNet). Other numbers raise InputError.
    """

    def __init__(self, config: RcnnConfig | RetinanetConfig):
        super().__init__()
        self.body = freeze_batch_norm(build_backbone(config.backbone))
        self.first = config.first_stage
        self.out_channels = config.pyramid_channels
        channels = self.body.channels[self.first :]
        if not channels[0]:
            raise InputError(f"{config.backbone} has no map at stride 2; set first_stage to 1 or more")
        levels, sides = len(channels), len(config.anchor_sides)
        if sides == levels:
            coarser = None
        elif sides == levels + 1:
            coarser = LastLevelMaxPool()
        elif sides == levels + 2:
            coarser = LastLevelP6P7(channels[-1], config.pyramid_channels)
        else:
            raise InputError(
                f"first_stage={self.first} makes {levels} to {levels + 2} pyramid levels; anchor_sides names {sides}"
            )
        self.fpn = FeaturePyramidNetwork(channels, config.pyramid_channels, extra_blocks=coarser)
        for stage in self.body.stages[: config.frozen_stages]:
            stage.requires_grad_(False)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 3, S, S) -> L maps (B, pyramid_channels, side, side), finest first, each of half the side before it."""
        maps = self.body(images)[self.first :]
        return self.fpn(OrderedDict((str(k), m) for k, m in enumerate(maps)))
