"""Mean and standard deviation of stacks of any size."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from distill.errors import UserError
from distill.images.stack import LazyFrames, Stack

MAX_COUNT = 1e18  # its square, a variance, still fits into float32
SIDE = 1024  # px; largest side of frames for noise estimation, because networks process them in memory
SCAN_BYTES = 2e9  # statistics use all pixels of a stack up to this size, and a sample of a larger one


def spread(n: int, count: int) -> np.ndarray:
    """`count` evenly spread indices of 0..n-1, or all n if n is smaller; a single one is in the middle."""
    count = min(n, count)
    return ((np.arange(count) + 0.5) * n / count).astype(int)


def some_frames(stack: Stack, count: int, side: int | None = None) -> np.ndarray:
    """`count` evenly spread frames, or all if there are fewer: (count, C, *S) float32, in raw counts.

    side: largest number of rows and columns, which are taken from the middle of larger frames; of volumes
    fewer, so that a frame has as many pixels. Default: whole frames.
    """
    *depth, height, width = stack.frames.shape[2:]
    side = side and int(side / math.sqrt(math.prod(depth)))
    space = [*map(slice, depth), _middle(height, side or height), _middle(width, side or width)]
    chosen = (spread(len(stack.frames), count), slice(None), *space)
    return as_float32(stack.frames[chosen], stack.name)


def _middle(n: int, side: int) -> slice:
    side = min(n, side)
    return slice((n - side) // 2, (n - side) // 2 + side)


def as_float32(counts, name: str) -> np.ndarray:
    """A copy in float32, NaN included. UserError if values or their squares would be infinite."""
    counts = np.asarray(counts)
    if _may_be_unusable(counts.dtype) and (abs(counts) > MAX_COUNT).any():
        raise UserError(f"{name}: has infinity or values beyond {MAX_COUNT:g}; pass an image of raw counts")
    return counts.astype(np.float32)


def check_finite(stack: Stack, which: Sequence[int] | np.ndarray | None = None) -> None:
    """UserError if pixels of all frames, or of those in `which`, are NaN, infinite or too large for counts.

    Such pixels are refused, not filled in: a network spreads them over all pixels that see them, and no
    filling is right for both a dead pixel and a masked background.
    """
    if not _may_be_unusable(stack.pixels.dtype):
        return
    which = range(len(stack.frames)) if which is None else which
    bad = {int(i): _unusable(stack.frames[int(i)]) for i in which}
    bad = {i: count for i, count in bad.items() if count}
    if total := sum(bad.values()):
        raise UserError(
            f"{stack.name}: {total} pixel{'s' * (total > 1)} in {len(bad)} of {len(which)} frames (first in"
            f" frame {min(bad)}) are NaN, infinite or beyond {MAX_COUNT:g}, and would spread to their"
            " neighbours; replace those pixels, or leave those frames out"
        )


def _may_be_unusable(dtype: np.dtype) -> bool:
    return dtype.kind == "f" or dtype.itemsize > 4


def _unusable(pixels: np.ndarray) -> int:
    if not _may_be_unusable(pixels.dtype):
        return 0
    most = min(MAX_COUNT, float(np.finfo(pixels.dtype).max)) if pixels.dtype.kind == "f" else MAX_COUNT
    return int((~(abs(pixels) <= most)).sum())


def statistics(stack: Stack) -> tuple[np.ndarray, np.ndarray]:
    """(mean, std) of each channel, each (C, 1, 1) float32, over all frames.

    They are computed in one pass in float64, block by block (Chan's parallel form of Welford's update); for
    an image of more than SCAN_BYTES, from a sample of its blocks. Raises UserError for NaN or infinity
    (`check_finite`) and for a constant channel.
    """
    frames = stack.frames
    n_channels = frames.shape[1]
    count, mean, m2 = 0, np.zeros(n_channels), np.zeros(n_channels)
    low, high = np.full(n_channels, np.inf), np.full(n_channels, -np.inf)
    for i, rows, columns in _blocks(frames):
        block = np.asarray(frames[i, :, rows, columns]).reshape(n_channels, -1)
        if _unusable(block):
            check_finite(stack)
        block = block.astype(np.float64)
        n, m = block.shape[1], block.mean(1)
        low, high = np.minimum(low, block.min(1)), np.maximum(high, block.max(1))
        delta, count = m - mean, count + n
        m2 += ((block - m[:, None]) ** 2).sum(1) + delta**2 * (n * (count - n) / count)
        mean += delta * (n / count)
    for c in np.flatnonzero(low == high):
        raise UserError(
            f"{stack.name}: channel {c} is constant (every pixel is {low[c]:g}), which leaves"
            " nothing to learn; pass an image that varies"
        )
    mean, std = (v.astype(np.float32).reshape(-1, 1, 1) for v in (mean, np.sqrt(m2 / count)))
    return mean, std


def _blocks(frames: Any) -> Iterator[tuple[int, slice, slice]]:
    """(frame, rows, columns) of the blocks, with those in the same chunks one after another.

    Of more than SCAN_BYTES, only one group of chunks of each stretch is used, because the mean of a terabyte
    does not need all of it. A NaN in an omitted block is found later, when training checks the loss.
    """
    n, channels, height, width = frames.shape
    is_lazy = isinstance(frames, LazyFrames)
    groups = [group.tolist() for group in (frames.groups() if is_lazy else np.arange(n)[:, None])]
    rows, columns = frames.chunk_sides() if is_lazy else (1, width)
    together = channels * max(map(len, groups))
    rows *= max(1, 2**20 // (together * columns * rows))
    down, across = -(-height // rows), -(-width // columns)
    n_bytes = together * min(rows, height) * min(columns, width) * frames.dtype.itemsize
    total = len(groups) * down * across
    count = min(total, max(1, int(SCAN_BYTES / n_bytes)))
    edges = np.arange(count + 1) * total // count
    for at in np.random.default_rng(0).integers(edges[:-1], edges[1:]).tolist():
        group, row, column = at // (down * across), at // across % down * rows, at % across * columns
        for i in groups[group]:
            yield i, slice(row, row + rows), slice(column, column + columns)
