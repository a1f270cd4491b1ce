"""Mean and standard deviation of stacks of any size."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from distill.errors import UserError
from distill.images.stack import LazyFrames, Stack

MAX_COUNT = 1e18  # its square is still a float32, as a variance has to be
SIDE = 1024  # pixels, of a frame that noise is estimated from: networks look at it, which takes memory
SCAN_BYTES = 2e9  # statistics read all of a smaller stack, a sample of a larger one


def spread(n: int, count: int) -> np.ndarray:
    """`count` of the indices 0..n-1 (or all n, if fewer), spread evenly; of one, the middle."""
    count = min(n, count)
    return ((np.arange(count) + 0.5) * n / count).astype(int)


def some_frames(stack: Stack, count: int, side: int | None = None) -> np.ndarray:
    """`count` of its frames (or all, if fewer), spread evenly: (count, C, Y, X) float32, in raw counts.

    side: of larger frames, only as many rows and columns, from the middle. Default: all of each frame.
    """
    rows, columns = (_middle(n, side or n) for n in stack.frames.shape[2:])
    return as_float32(stack.frames[spread(len(stack.frames), count), :, rows, columns], stack.name)


def _middle(n: int, side: int) -> slice:
    side = min(n, side)
    return slice((n - side) // 2, (n - side) // 2 + side)


def as_float32(counts, name: str) -> np.ndarray:
    """A copy in float32, NaN included; a UserError for what would become infinite in it, or in its square."""
    counts = np.asarray(counts)
    if _may_be_unusable(counts.dtype) and (abs(counts) > MAX_COUNT).any():
        raise UserError(f"{name}: holds infinity or values beyond {MAX_COUNT:g}; pass an image of raw counts")
    return counts.astype(np.float32)


def check_finite(stack: Stack, which: Sequence[int] | np.ndarray | None = None) -> None:
    """A UserError that counts NaN, infinity and what is too large to be counts, in all frames or in `which`.

    Refused, not filled in: a network spreads such a pixel over all that see it, and no filling is right for
    both a dead pixel and a masked background.
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


def statistics(stack: Stack, frames_index=None) -> tuple[np.ndarray, np.ndarray]:
    """Per-channel (mean, std), each (C, 1, 1) float32, of all frames or those in `frames_index`.

    One pass in float64, block by block (Chan's parallel form of Welford's update); of an image of more than
    SCAN_BYTES, a sample of them.
    Errors: NaN or infinity (`check_finite`), a constant channel.
    """
    frames = stack.frames
    n_channels = frames.shape[1]
    which = np.arange(len(frames)) if frames_index is None else np.asarray(frames_index)
    count, mean, m2 = 0, np.zeros(n_channels), np.zeros(n_channels)
    low, high = np.full(n_channels, np.inf), np.full(n_channels, -np.inf)
    for i, rows, columns in _blocks(frames, which):
        block = np.asarray(frames[i, :, rows, columns]).reshape(n_channels, -1)
        if _unusable(block):
            check_finite(stack, which)
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


def _blocks(frames: Any, which: np.ndarray) -> Iterator[tuple[int, slice, slice]]:
    """(frame, rows, columns) of all blocks, those in the same chunks in a row. Of more than SCAN_BYTES, one
    group of chunks of each stretch of them: a terabyte's mean needs no terabyte.

    A NaN in a block left out is caught later, by the training loop's check of the loss."""
    _, channels, height, width = frames.shape
    is_lazy = isinstance(frames, LazyFrames)
    chosen = set(which.tolist())
    groups = frames.groups() if is_lazy else which[:, None]
    groups = [own for group in groups if (own := [i for i in group.tolist() if i in chosen])]
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
