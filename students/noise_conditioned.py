"""A student that draws: with noise as further channels, the same network gives another sample each time."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class NoiseConditioned(nn.Module):
    """Independent draws of an image, new ones on every call: (B, C, H, W) -> (B, samples * C, H, W).

    Train it with EnergyScore of as many samples.

    Args:
        backbone: network with more input channels than the image, such as in_channels=7 for one channel,
            and C output channels. The remaining input channels are standard normal noise.
        samples: number of draws per call, at least 2.
        scales: correlation lengths of the noise in pixels, which the noise channels take in turn. Correlated
            noise lets a few layers produce coarse variation, to which white noise hardly contributes.
    """

    def __init__(self, backbone: nn.Module, samples: int = 2, scales: Sequence[int] = (1, 4, 16)) -> None:
        super().__init__()
        if samples < 2 or min(scales, default=0) < 1:
            raise ValueError(
                f"NoiseConditioned: got samples={samples}, scales={scales}; needs at least 2 samples "
                "and scales of at least 1 pixel"
            )
        self.backbone, self.samples, self.scales = backbone, samples, list(scales)
        self.multiple = getattr(backbone, "multiple", 1)

    def forward(self, x: Tensor) -> Tensor:
        room = cast(int, self.backbone.in_channels) - x.shape[1]
        if room < 1:
            raise ValueError(
                f"NoiseConditioned: the backbone takes {self.backbone.in_channels} channels, the image "
                f"has {x.shape[1]}, which leaves none for noise; raise the backbone's in_channels"
            )
        repeated = x.repeat(self.samples, 1, 1, 1)
        noise = [smooth_noise(repeated, self.scales[i % len(self.scales)]) for i in range(room)]
        draws = self.backbone(torch.cat([repeated, *noise], dim=1))  # (samples * B, C, H, W)
        return draws.unflatten(0, (self.samples, -1)).transpose(0, 1).flatten(1, 2)


def smooth_noise(like: Tensor, scale: int) -> Tensor:
    """Noise (B, 1, H, W) of variance 1, correlated over `scale` pixels.

    It is a moving sum of white noise; noise in blocks would leave their grid in the std of the draws.
    """
    batch, _, height, width = like.shape
    white = like.new_empty(batch, 1, height + scale - 1, width + scale - 1).normal_()
    if scale == 1:
        return white
    along_y = F.avg_pool2d(white, (scale, 1), stride=1)
    return scale * F.avg_pool2d(along_y, (1, scale), stride=1)
