"""Noisy frames with their ground truth."""

from collections.abc import Sequence
from typing import overload

import torch
from torch import Tensor

from distill.denoiser import DirectDenoiser
from distill.errors import UserError
from distill.images.sources import Images, as_stack
from distill.images.statistics import check_finite, some_frames, spread
from distill.memory import check_memory

Pairs = Sequence[tuple[Tensor, Tensor | None]]


@overload
def paired(
    noisy: Images,
    clean: Images,
    axes: str | None = None,
    frames: int | None = None,
    denoiser: DirectDenoiser | None = None,
) -> list[tuple[Tensor, Tensor]]: ...


@overload
def paired(
    noisy: Images,
    clean: Images | None,
    axes: str | None = None,
    frames: int | None = None,
    denoiser: DirectDenoiser | None = None,
) -> Pairs: ...


def paired(
    noisy: Images,
    clean: Images | None,
    axes: str | None = None,
    frames: int | None = None,
    denoiser: DirectDenoiser | None = None,
) -> Pairs:
    """(noisy, clean) of each frame, or of `frames` of them, spread evenly; each (C, H, W) float32. denoiser:
    whose outputs are to be compared, where they may differ from the noisy images in shape.

    The noisy ones are finite, else it is a UserError; where the clean ones are not there is no truth.
    """
    noisy_stack = as_stack(noisy, axes)
    n_noisy = len(noisy_stack.frames)
    check_finite(noisy_stack, spread(n_noisy, frames or n_noisy))
    size = 4 * noisy_stack.pixels.size * min(frames or n_noisy, n_noisy) / n_noisy
    check_memory(2 * size, noisy_stack.name, "pass fewer frames")  # with the truth
    chosen = torch.from_numpy(some_frames(noisy_stack, frames or n_noisy))
    if clean is None:
        return [(frame, None) for frame in chosen]
    clean_stack = as_stack(clean, axes)
    n_clean = len(clean_stack.frames)
    wanted = tuple(noisy_stack.frames.shape)
    wanted = denoiser.out_shape(wanted) if denoiser else wanted
    if tuple(clean_stack.frames.shape[1:]) != wanted[1:] or n_clean not in (1, n_noisy):
        same = "the same size" if wanted == noisy_stack.frames.shape else f"(C, Y, X) = {wanted[1:]}"
        raise UserError(
            f"clean: got frames {tuple(clean_stack.frames.shape)} for noisy {noisy_stack.frames.shape} "
            f"(N, C, Y, X); pass one frame, or as many, of {same}"
        )
    truth = torch.from_numpy(some_frames(clean_stack, frames or n_clean))
    truth = truth.expand(len(chosen), *truth.shape[1:])
    return list(zip(chosen, truth, strict=True))
