"""Noisy frames with their ground truth."""

import numpy as np
import torch
from torch import Tensor

from distill.errors import UserError
from distill.images.sources import Images, as_stack
from distill.images.statistics import spread

Pairs = list[tuple[Tensor, Tensor | None]]


def paired(noisy: Images, clean: Images | None, axes: str | None = None, frames: int | None = None) -> Pairs:
    """(noisy, clean) of each frame, or of `frames` of them, spread evenly; each (C, H, W) float32."""
    noisy_stack = as_stack(noisy, axes)
    chosen = spread(len(noisy_stack.frames), frames or len(noisy_stack.frames))
    if clean is None:
        return [(as_tensor(noisy_stack.frames[i]), None) for i in chosen]
    clean_stack = as_stack(clean, axes)
    n_noisy, n_clean = len(noisy_stack.frames), len(clean_stack.frames)
    if clean_stack.frames.shape[1:] != noisy_stack.frames.shape[1:] or n_clean not in (1, n_noisy):
        raise UserError(
            f"clean: got frames {tuple(clean_stack.frames.shape)} for noisy {noisy_stack.frames.shape} "
            "(N, C, Y, X); pass one frame, or as many, of the same size"
        )
    return [
        (as_tensor(noisy_stack.frames[i]), as_tensor(clean_stack.frames[i if n_clean > 1 else 0]))
        for i in chosen
    ]


def as_tensor(frame: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(frame, dtype=np.float32))  # a memory map is not writable
