"""Layers for images (B, C, Y, X) and for volumes (B, C, Z, Y, X), chosen by the number of spatial axes."""

from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)
CONV = {2: nn.Conv2d, 3: nn.Conv3d}
CONV_TRANSPOSE = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
BATCH_NORM = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
DROPOUT = {2: nn.Dropout2d, 3: nn.Dropout3d}
MAX_POOL = {2: nn.MaxPool2d, 3: nn.MaxPool3d}
CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}  # by the rank of a tensor


def check_dims(name: str, dims: int) -> None:
    """ValueError for a number of spatial axes other than 2 and 3."""
    if dims not in CONV:
        raise ValueError(f"{name}: got dims={dims}, allowed are 2 for images and 3 for volumes")


def channels_last(module: Network) -> Network:
    """The module with its weights in the memory format that convolutions are fastest in."""
    return module._apply(as_channels_last)


def as_channels_last(x: Tensor) -> Tensor:
    """The tensor in that format if it has the rank of images, of volumes or of their convolutions."""
    return x.contiguous(memory_format=CHANNELS_LAST[x.ndim]) if x.ndim in CHANNELS_LAST else x


def unshuffled(x: Tensor, factor: int) -> Tensor:
    """(B, C, *S) -> (B, C * factor^dims, *S / factor): blocks of pixels become channels of one pixel."""
    if x.ndim == 4:
        return F.pixel_unshuffle(x, factor)
    batch, channels, *size = x.shape
    split = [part for n in size for part in (n // factor, factor)]
    x = x.reshape(batch, channels, *split).permute(0, 1, 3, 5, 7, 2, 4, 6)
    return x.reshape(batch, -1, *[n // factor for n in size])


def shuffled(x: Tensor, factor: int) -> Tensor:
    """The inverse of `unshuffled`."""
    if x.ndim == 4:
        return F.pixel_shuffle(x, factor)
    batch, _, *size = x.shape
    x = x.reshape(batch, -1, factor, factor, factor, *size).permute(0, 1, 5, 2, 6, 3, 7, 4)
    return x.reshape(batch, -1, *[n * factor for n in size])


class Unshuffle(nn.Module):
    """`unshuffled` as a layer."""

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return unshuffled(x, self.factor)


class Shuffle(Unshuffle):
    """`shuffled` as a layer."""

    def forward(self, x: Tensor) -> Tensor:
        return shuffled(x, self.factor)


def per_channel(values: Tensor, dims: int) -> Tensor:
    """Values of channels (C, ...), such as a mean (C, 1, 1) -> (C, 1, ...), with `dims` ones."""
    return values.reshape(-1, *[1] * dims)


def as_planes(x: Tensor) -> Tensor:
    """Volumes (B, C, Z, Y, X) -> their planes (B * Z, C, Y, X); images as they are."""
    return x.transpose(1, 2).flatten(0, 1) if x.ndim == 5 else x


def padding(before_after: Sequence[tuple[int, int]]) -> list[int]:
    """Padding of each axis -> the order of F.pad, which begins with the last axis."""
    return [n for pair in reversed(before_after) for n in pair]
