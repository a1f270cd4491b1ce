"""Random patches straight from a stack of frames, and the split that keeps validation apart."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from distill.errors import UserError, checks_of

TRANSPOSED, MIRRORED_Y, MIRRORED_X = 1, 2, 4  # each or not: the 8 orientations of a square
MIRRORS = {"y": MIRRORED_Y, "x": MIRRORED_X, "yx": MIRRORED_Y | MIRRORED_X}


def orientations(isotropic: bool, mirrors: Iterable[str], scale: tuple[int, int] = (1, 1)) -> list[int]:
    """In which a sampler's patches may come; see PosteriorSampler. Not transposed where draws are enlarged
    along one axis more than along the other."""
    allowed = list(range(8)) if isotropic else [0, *(MIRRORS[each] for each in mirrors)]
    return [each for each in allowed if scale[0] == scale[1] or not each & TRANSPOSED]


def split(frames, val_fraction: float, patch_size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Disjoint (train, val) regions of frames (N, C, Y, X), each (R, 5): frame, y0, y1, x0, x1.

    Whole frames if N > 1, at least one on each side; of a single frame, a strip along one edge
    whose area comes closest to `val_fraction`. Errors: patch does not fit, too small to split.
    """
    n, _, height, width = frames.shape
    if not 0 <= val_fraction < 1:
        raise UserError(f"val_fraction is {val_fraction}; pass 0 or more and less than 1, such as 0.15")
    if patch_size < 1 or patch_size > min(height, width):
        raise UserError(
            f"patch_size {patch_size} does not fit frames of {height} x {width} pixels;"
            f" pass --patch_size between 1 and {min(height, width)}"
        )
    rng = np.random.default_rng(seed)
    whole = np.array([(i, 0, height, 0, width) for i in range(n)], dtype=np.int64)
    if val_fraction == 0:
        return whole, whole[:0]
    if n > 1:
        n_val = min(max(round(val_fraction * n), 1), n - 1)
        order = rng.permutation(n)
        return whole[np.sort(order[n_val:])], whole[np.sort(order[:n_val])]
    return _split_frame(height, width, val_fraction, patch_size, rng)


def _split_frame(height, width, val_fraction, patch_size, rng) -> tuple[np.ndarray, np.ndarray]:
    candidates = []  # (distance from val_fraction, along which axis, thickness of the strip)
    for axis, length in enumerate((height, width)):
        if length >= 2 * patch_size:
            strip = min(max(round(val_fraction * length), patch_size), length - patch_size)
            candidates.append((abs(strip / length - val_fraction), axis, strip))
    if not candidates:
        raise UserError(
            f"one frame of {height} x {width} pixels cannot be split into training and"
            f" validation patches of {patch_size}; it takes {2 * patch_size} pixels along one"
            f" side: pass --patch_size {max(height, width) // 2} or less, more frames, or"
            " --val_fraction 0"
        )
    best = min(candidates)[0]
    _, axis, strip = candidates[rng.choice([i for i, c in enumerate(candidates) if c[0] == best])]
    val, train = [0, 0, height, 0, width], [0, 0, height, 0, width]
    low, high = 1 + 2 * axis, 2 + 2 * axis  # columns of the axis' start and stop
    if rng.random() < 0.5:
        val[high] = train[low] = strip
    else:
        val[low] = train[high] = val[high] - strip
    return np.array([train], dtype=np.int64), np.array([val], dtype=np.int64)


Places = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""Of patches, n each: the region, how far down and right in it, and the orientation."""


class Patches:
    """Square patches of frames (N, C, Y, X) within regions (R, 5); reads only their pixels."""

    def __init__(self, frames, regions, patch_size: int):
        # A plain view of a memory map: still unread, and without np.memmap's slow indexing.
        self.frames = np.asarray(frames) if isinstance(frames, np.ndarray) else frames
        self.regions = np.asarray(regions, dtype=np.int64).reshape(-1, 5)
        self.patch_size = patch_size
        _, y0, y1, x0, x1 = self.regions.T
        self._rows = np.maximum(y1 - y0 - patch_size + 1, 0)  # patch positions along each side
        self._columns = np.maximum(x1 - x0 - patch_size + 1, 0)
        self._ends = np.cumsum(self._rows * self._columns)
        if not len(self.regions) or not self._ends[-1]:
            raise UserError(
                f"no region holds a patch of {patch_size} x {patch_size} pixels; pass a smaller --patch_size"
            )

    def sample(
        self,
        n: int,
        generator: np.random.Generator,
        allowed: Sequence[int] = range(8),
        part: slice = slice(None),
    ) -> torch.Tensor:
        """(n, C, P, P) float32 raw counts, every position equally likely, with replacement.

        allowed: those of the 8 `orientations` that each patch comes in at random. part: which of the n
        patches are read and returned.
        """
        return self.cut(self.places(n, generator, allowed, part))

    def places(
        self,
        n: int,
        generator: np.random.Generator,
        allowed: Sequence[int] = range(8),
        part: slice = slice(None),
    ) -> Places:
        """Where `sample` cuts its patches: all that is random, without reading a pixel."""
        flat = generator.integers(self._ends[-1], size=n)
        region = np.searchsorted(self._ends, flat, side="right")
        flat = flat - (self._ends - self._rows * self._columns)[region]
        down, right = np.divmod(flat, self._columns[region])
        turns = np.asarray(allowed)[generator.integers(len(allowed), size=n)]
        return region[part], down[part], right[part], turns[part]

    def grid(self, limit: int = 64) -> torch.Tensor:
        """(at most limit, C, P, P) float32: the same non-overlapping patches on each call, evenly
        spread over all regions, not augmented."""
        size = self.patch_size
        _, y0, y1, x0, x1 = self.regions.T
        rows, columns = (y1 - y0) // size, (x1 - x0) // size
        ends = np.cumsum(rows * columns)
        total = int(ends[-1])
        # One of each stretch of tiles, jittered: a fixed stride would pick one column only.
        edges = np.arange(min(limit, total) + 1) * total // min(limit, total)
        flat = np.random.default_rng(0).integers(edges[:-1], edges[1:])
        region = np.searchsorted(ends, flat, side="right")
        down, right = np.divmod(flat - (ends - rows * columns)[region], columns[region])
        margin_y, margin_x = ((y1 - y0) % size // 2)[region], ((x1 - x0) % size // 2)[region]
        plain = np.zeros(len(flat), dtype=np.int64)
        return self.cut((region, margin_y + down * size, margin_x + right * size, plain))

    def cut(self, places: Places) -> torch.Tensor:
        """(n, C, P, P) float32 raw counts."""
        (region, down, right, turns), size = places, self.patch_size
        out = np.empty((len(region), self.frames.shape[1], size, size), dtype=np.float32)
        frame, y, x = self.regions[region, 0], self.regions[region, 1] + down, right
        x = x + self.regions[region, 3]
        each = zip(frame.tolist(), y.tolist(), x.tolist(), turns.tolist(), strict=True)
        for patch, (i, top, left, turn) in zip(out, each, strict=True):
            with checks_of():  # a cache of draws verifies them as it reads
                source = self.frames[i, :, top : top + size, left : left + size]
            if turn & TRANSPOSED:
                source = source.swapaxes(1, 2)
            if turn & MIRRORED_Y:
                source = source[:, ::-1]
            if turn & MIRRORED_X:
                source = source[:, :, ::-1]
            patch[...] = source  # converts from any dtype and byte order
        return torch.from_numpy(out)
