"""Whatever holds images as a Stack: a path, an array, a tensor."""

import os
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from distill.errors import UserError
from distill.images.stack import Stack, checked
from distill.images.tiff import read

Images = str | os.PathLike | np.ndarray | Tensor | Stack


def as_stack(images: Images, axes: str | None = None) -> Stack:
    """A path, an array, a tensor or a Stack as a Stack. Arrays are YX, TYX or TCYX by default."""
    if isinstance(images, (str, os.PathLike)):
        return read(images, axes)
    if isinstance(images, Stack):
        return checked(replace(images, axes=axes.upper() if axes else images.axes))
    if isinstance(images, Tensor):
        images = images.detach().cpu()
        images = (images.float() if images.dtype == torch.bfloat16 else images).numpy()
    pixels = images if isinstance(images, np.ndarray) else np.asarray(images)
    guess = {2: "YX", 3: "TYX", 4: "TCYX"}.get(pixels.ndim, "")
    return checked(Stack(pixels, axes.upper() if axes else guess))


def check_channels(stack: Stack, name: str, trained_on: int | None) -> None:
    """A UserError for a stack of other channels than `name` was trained on, where that is known."""
    channels = stack.frames.shape[1]
    if trained_on not in (None, channels):
        raise UserError(
            f"{stack.name}: has {channels} channels, but {name} was trained on {trained_on}; pass images "
            "like those that it was trained on, or --axes if these are no channels"
        )
