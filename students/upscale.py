"""A head for super-resolution, whose output is larger than the network's input."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from students.dimensions import CONV

Scale = int | Sequence[int]


def factors(scale: Scale) -> tuple[int, int]:
    """A scale such as 2 or (2, 1) -> its factors along Y and X. ValueError for anything else."""
    pair: list[Any] = list(scale) if isinstance(scale, list | tuple) else [scale, scale]
    if len(pair) != 2 or not all(isinstance(n, int) and not isinstance(n, bool) and n >= 1 for n in pair):
        raise ValueError(
            f"scale: got {scale!r}, must be a whole number from 1 on, or two of them for Y and X"
        )
    return pair[0], pair[1]


class Nearest(nn.Module):
    """Repeats every pixel: (B, C, H, W) -> (B, C, H * y, W * x)."""

    def __init__(self, scale: Scale) -> None:
        super().__init__()
        self.y, self.x = factors(scale)

    def forward(self, images: Tensor) -> Tensor:
        spread = images[:, :, :, None, :, None].expand(-1, -1, -1, self.y, -1, self.x)
        return spread.flatten(4, 5).flatten(2, 3)


def upscaled(features: int, out_channels: int, scale: Scale, dims: int = 2) -> nn.Module:
    """The last layer of a student, (B, features, *S) -> (B, out_channels, *S'), larger along Y and X.

    At scale 1 it is a convolution. Otherwise pixels are repeated and then convolved, because a pixel shuffle
    has separate weights for every position in a coarse pixel, which shows as a checkerboard (Odena et al.
    2016). ValueError for volumes at another scale than 1.
    """
    last = conv(features, out_channels, dims=dims)
    if factors(scale) == (1, 1):
        return last
    if dims != 2:
        raise ValueError(f"scale: got {scale!r} for volumes, must be 1; enlarge planes with dims=2")
    return nn.Sequential(Nearest(scale), conv(features, features), nn.ReLU(inplace=True), last)


def conv(inputs: int, outputs: int, stride: int = 1, dims: int = 2, groups: int = 1) -> nn.Module:
    """A convolution of 3 pixels along each axis. A volume's coarsest level may have a single plane, which can
    be repeated at its border but not reflected."""
    mode = "reflect" if dims == 2 else "replicate"
    return CONV[dims](inputs, outputs, 3, stride=stride, padding=1, groups=groups, padding_mode=mode)
