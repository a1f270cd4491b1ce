"""Images that are larger than what the network sees: a head for super-resolution."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

Scale = int | Sequence[int]


def factors(scale: Scale) -> tuple[int, int]:
    """2 or (2, 1) -> how many times larger along Y and along X. ValueError for what is neither."""
    pair: list[Any] = list(scale) if isinstance(scale, list | tuple) else [scale, scale]
    if len(pair) != 2 or not all(isinstance(n, int) and not isinstance(n, bool) and n >= 1 for n in pair):
        raise ValueError(
            f"scale: got {scale!r}, must be a whole number from 1 on, or two of them for Y and X"
        )
    return pair[0], pair[1]


class Nearest(nn.Module):
    """(B, C, H, W) -> (B, C, H * y, W * x), every pixel repeated."""

    def __init__(self, scale: Scale) -> None:
        super().__init__()
        self.y, self.x = factors(scale)

    def forward(self, images: Tensor) -> Tensor:
        spread = images[:, :, :, None, :, None].expand(-1, -1, -1, self.y, -1, self.x)
        return spread.flatten(4, 5).flatten(2, 3)


def upscaled(features: int, out_channels: int, scale: Scale) -> nn.Module:
    """The last layer, (B, features, H, W) -> (B, out_channels, H * y, W * x).

    At scale 1 a convolution. Else pixels are repeated and then convolved: a pixel shuffle alone has its own
    weights for every place in a coarse pixel, which shows as a checkerboard (Odena et al. 2016).
    """
    last = conv(features, out_channels)
    if factors(scale) == (1, 1):
        return last
    return nn.Sequential(Nearest(scale), conv(features, features), nn.ReLU(inplace=True), last)


def conv(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, padding_mode="reflect")
