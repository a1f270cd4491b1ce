"""Fills in hot and dead pixels: single pixels that no objective can image, and that ring in the answer."""

import torch
from torch import Tensor

JUMP = 10.0  # standard deviations of the noise between such a pixel and all of its neighbours
BELOW = 3.0  # divides z below 0, where there is no photon, and read noise has a larger spread
CONTRAST = 4.0  # the same, in the contrast of the neighbours; a spot sampled at Nyquist's rate has 1


def fill_hot_pixels(image: Tensor, z: Tensor | None = None) -> Tensor:
    """Image (B, C, H, W) -> the same, with such pixels like their neighbours.

    Two that touch each other stay as they are.

    Args:
        image: counts, or any other values.
        z: image whose noise has standard deviation 1, and which shows such pixels. Default: image.
    """
    z = image if z is None else z
    z = torch.where(z < 0, z / BELOW, z)
    high, low = _highest_neighbour(z), -_highest_neighbour(-z)
    highest, lowest = _highest_near(z, high), -_highest_near(-z, -low)
    hot = z - high > (CONTRAST * (high - lowest)).clamp(min=JUMP)
    dead = low - z > (CONTRAST * (highest - low)).clamp(min=JUMP)
    return torch.where(hot | dead, _middle_neighbour(image), image)


def _highest_neighbour(z: Tensor) -> Tensor:
    """Of the eight of each pixel. Images continue at their opposite sides, which may hide hot pixels."""
    across = _either_side(z, -1)
    return torch.maximum(across, _either_side(torch.maximum(z, across), -2))


def _middle_neighbour(image: Tensor) -> Tensor:
    """The median of those on the left, on the right and below, which of recorded integers is one, too."""
    left, right, below = image.roll(1, -1), image.roll(-1, -1), image.roll(-1, -2)
    return torch.maximum(torch.minimum(left, right), torch.minimum(torch.maximum(left, right), below))


def _highest_near(z: Tensor, high: Tensor) -> Tensor:
    """Of 5 x 5 pixels."""
    return _either_side(_either_side(torch.maximum(z, high), -1), -2)


def _either_side(z: Tensor, dim: int) -> Tensor:
    """The higher of the pixels before and after each."""
    return torch.maximum(z.roll(1, dim), z.roll(-1, dim))
