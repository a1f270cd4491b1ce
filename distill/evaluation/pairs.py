"""Pairs of noisy frames and their ground truth."""

from collections.abc import Sequence
from typing import overload

import torch
from torch import Tensor

from distill.denoiser import DirectDenoiser
from distill.errors import UserError
from distill.images.context import in_context
from distill.images.sources import Images, as_stack
from distill.images.stack import Stack
from distill.images.statistics import as_float32, check_finite, spread
from distill.images.volumes import Volumes, as_volumes

Pairs = Sequence[tuple[Tensor, Tensor | None]]


class _Frames(Sequence[tuple[Tensor, Tensor | None]]):
    """Pairs that are read when they are indexed, so that memory holds only one of them."""

    def __init__(self, noisy: Stack, clean: Stack | None, frames: int | None) -> None:
        self._noisy, self._clean = noisy, clean
        self._chosen = spread(len(noisy.frames), frames or len(noisy.frames)).tolist()

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, i):
        frame = self._chosen[i]
        if self._clean is None:
            return _read(self._noisy, frame), None
        return _read(self._noisy, frame), _read(self._clean, min(frame, len(self._clean.frames) - 1))


def _read(stack: Stack, frame: int) -> Tensor:
    """One frame (C, *S) as float32 in raw counts."""
    return torch.from_numpy(as_float32(stack.frames[frame], stack.name))


@overload
def paired(
    noisy: Images,
    clean: Images,
    axes: str | None = None,
    frames: int | None = None,
    denoiser: DirectDenoiser | None = None,
) -> Sequence[tuple[Tensor, Tensor]]: ...


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
    """Pairs (noisy, clean) of frames (C, *S) as float32, which are read when they are indexed.

    Raises UserError for noisy frames that are not finite, and for a truth of another shape. Pixels of clean
    frames that are not finite have no truth.

    frames: number of evenly spread frames. Default: all. denoiser: network whose outputs are compared, if
    they may differ from the noisy images in shape.
    """
    noisy_stack = in_context(as_stack(noisy, axes), denoiser and denoiser.context)
    n_noisy = len(noisy_stack.frames)
    check_finite(noisy_stack, spread(n_noisy, frames or n_noisy))
    if clean is None:
        return _Frames(noisy_stack, None, frames)
    clean_stack = as_stack(clean, axes)
    clean_stack = as_volumes(clean_stack) if isinstance(noisy_stack, Volumes) else clean_stack
    n_clean = len(clean_stack.frames)
    shape = tuple(noisy_stack.frames.shape)
    shape = denoiser.out_shape(shape) if denoiser else shape
    if tuple(clean_stack.frames.shape[1:]) != shape[1:] or n_clean not in (1, n_noisy):
        same = "the same size" if shape == noisy_stack.frames.shape else f"(C, *S) = {shape[1:]}"
        raise UserError(
            f"clean: got frames {tuple(clean_stack.frames.shape)} for noisy {noisy_stack.frames.shape} "
            f"(N, C, *S); pass one frame, or as many, of {same}"
        )
    return _Frames(noisy_stack, clean_stack, frames)
