"""Fills in hot and dead pixels: points that no objective can image, and that ring in the answer."""

import torch
from torch import Tensor

from students.anscombe import DARK

JUMP = 5.0  # standard deviations of the noise between such a pixel and all but one of its neighbours
CONTRAST = 5.0  # the same, in the contrast of the neighbours; a spot sampled at Nyquist's rate has 1
NOISE = 2.5  # standard deviations of this contrast that are noise, at least


def fill_hot_pixels(image: Tensor, z: Tensor | None = None, jump: float = JUMP) -> Tensor:
    """Image (B, C, H, W) -> the same, with such pixels, single ones or pairs, like a neighbour.

    Args:
        image: counts, or any other values.
        z: image whose noise has standard deviation 1 (`anscombe`), and which shows such pixels. Default:
            image.
        jump: least difference to all but one of the neighbours, in standard deviations of the noise.
    """
    z = image if z is None else z
    high, low = _second_highest(z), -_second_highest(-z)
    std_high, std_low = (2 * each.clamp(min=DARK) for each in (high, low))  # of the noise of `_light`
    jumps = z - high > jump
    light, high, low, highest, lowest = map(_light, (z, high, low, _highest_near(z), -_highest_near(-z)))
    hot = jumps & (light - high > CONTRAST * (high - lowest - NOISE * std_low))
    # Towards no light, noise of z has a long tail. In that of photons it has none.
    dead = low - light > torch.maximum(jump * std_high, CONTRAST * (highest - low - NOISE * std_high))
    return torch.where(hot | dead, _middle_neighbour(image), image)


def _light(z: Tensor) -> Tensor:
    """z -> what is linear in the light, and has noise of standard deviation 2 z."""
    return torch.where(z > DARK, z.square(), 2 * DARK * z - DARK**2)


def _second_highest(z: Tensor) -> Tensor:
    """Of the eight neighbours. Images continue at their opposite sides, which may hide hot pixels."""
    left, right = z.roll(1, -1), z.roll(-1, -1)
    first, second = torch.maximum(left, right), torch.minimum(left, right)
    for row in (left, z, right):
        for shift in (1, -1):
            each = row.roll(shift, -2)
            second = torch.maximum(second, torch.minimum(first, each))
            first = torch.maximum(first, each)
    return second


def _highest_near(z: Tensor) -> Tensor:
    """Of 5 x 5 pixels."""
    for dim in (-1, -2):
        z = torch.maximum(z, torch.maximum(z.roll(1, dim), z.roll(-1, dim)))
        z = torch.maximum(z.roll(1, dim), z.roll(-1, dim))
    return z


def _middle_neighbour(image: Tensor) -> Tensor:
    """The median of those on the left, on the right and below, which of recorded integers is one, too."""
    left, right, below = image.roll(1, -1), image.roll(-1, -1), image.roll(-1, -2)
    return torch.maximum(torch.minimum(left, right), torch.minimum(torch.maximum(left, right), below))
