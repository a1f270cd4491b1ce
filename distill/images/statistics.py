"""Mean and standard deviation of stacks of any size."""

from collections.abc import Sequence

import numpy as np

from distill.errors import UserError
from distill.images.stack import Stack

MAX_COUNT = 1e18  # its square is still a float32, as a variance has to be
SCAN_BYTES = 2e9  # statistics read all of a smaller stack, a sample of a larger one


def spread(n: int, count: int) -> np.ndarray:
    """`count` of the indices 0..n-1 (or all n, if fewer), spread evenly; of one, the middle."""
    count = min(n, count)
    return ((np.arange(count) + 0.5) * n / count).astype(int)


def some_frames(stack: Stack, count: int) -> np.ndarray:
    """`count` of its frames (or all, if fewer), spread evenly: (count, C, Y, X) float32, in raw counts."""
    return as_float32(stack.frames[spread(len(stack.frames), count)], stack.name)


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

    One pass in float64, a block of rows at a time (Chan's parallel form of Welford's update).
    Errors: NaN or infinity (`check_finite`), a constant channel.
    """
    frames = stack.frames
    n_channels, height, width = frames.shape[1:]
    which = np.arange(len(frames)) if frames_index is None else np.asarray(frames_index)
    rows = min(height, max(1, 2**20 // (n_channels * width)))
    per_frame = -(-height // rows)
    n_blocks = len(which) * per_frame
    # All of it up to SCAN_BYTES; beyond, evenly spaced blocks: a terabyte's mean needs no terabyte.
    # A NaN in a block left out is caught later, by the training loop's check of the loss.
    limit = max(1, int(SCAN_BYTES) // (rows * n_channels * width * frames.dtype.itemsize))
    blocks = np.arange(n_blocks) if n_blocks <= limit else np.arange(limit) * n_blocks // limit
    count, mean, m2 = 0, np.zeros(n_channels), np.zeros(n_channels)
    low, high = np.full(n_channels, np.inf), np.full(n_channels, -np.inf)
    for i, row in zip(which[blocks // per_frame], blocks % per_frame * rows, strict=True):
        block = np.asarray(frames[int(i), :, row : row + rows]).reshape(n_channels, -1)
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
