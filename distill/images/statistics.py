"""Mean and standard deviation of stacks of any size."""

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
    if (counts.dtype.kind == "f" or counts.dtype.itemsize > 4) and (abs(counts) > MAX_COUNT).any():
        raise UserError(f"{name}: holds infinity or values beyond {MAX_COUNT:g}; pass an image of raw counts")
    return counts.astype(np.float32)


def statistics(stack: Stack, frames_index=None) -> tuple[np.ndarray, np.ndarray]:
    """Per-channel (mean, std), each (C, 1, 1) float32, of all frames or those in `frames_index`.

    One pass in float64, a block of rows at a time (Chan's parallel form of Welford's update).
    Errors: NaN or infinity, a constant channel.
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
        block = block.astype(np.float64)
        if not np.isfinite(block).all():
            bad = int((~np.isfinite(block)).sum())
            raise UserError(
                f"{stack.name}: frame {i} holds NaN or infinity ({bad} pixels or more), only finite"
                " numbers are allowed; replace those first"
            )
        if abs(block).max() > MAX_COUNT:
            raise UserError(f"{stack.name}: frame {i} holds values beyond {MAX_COUNT:g}; pass raw counts")
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
