"""Random patches of a stack of frames, and the split into training and validation regions."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from distill.errors import UserError, checks_of

TRANSPOSED, MIRRORED_Y, MIRRORED_X = 1, 2, 4  # bits, whose sums are the 8 orientations of a square
MIRRORED_Z = 8  # a further bit for volumes
MIRRORS = {"y": MIRRORED_Y, "x": MIRRORED_X, "yx": MIRRORED_Y | MIRRORED_X}


def orientations(
    isotropic: bool, mirrors: Iterable[str], scale: tuple[int, int] = (1, 1), dims: int = 2
) -> list[int]:
    """Orientations that patches may have for a sampler with these attributes, see PosteriorSampler.

    If draws are enlarged by different factors along Y and X, patches are not transposed.
    Volumes may be mirrored along Z as well. Z is never exchanged with Y or X, even if the voxels are cubes,
    because the PSF of a microscope is longer along Z.
    """
    allowed = list(range(8)) if isotropic else [0, *(MIRRORS[each] for each in mirrors)]
    allowed = [each for each in allowed if scale[0] == scale[1] or not each & TRANSPOSED]
    return allowed + [each | MIRRORED_Z for each in allowed if dims == 3]


def patch_shape(frames: Sequence[int], patch_size: int) -> tuple[int, ...]:
    """Sides of the patches of frames of shape (N, C, *S): squares, of volumes half as many planes.

    With fewer, a network's coarsest level would have a single plane in training. The weights for the planes
    above and below would then only see zeros from beyond the border, stay random, and spoil whole volumes.
    """
    depth = [min(n, max(1, patch_size // 2)) for n in frames[2:-2]]
    return (*depth, patch_size, patch_size)


def split(frames, val_fraction: float, patch_size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Disjoint (training, validation) regions of frames (N, C, *S), each (R, 5): frame, y0, y1, x0, x1.

    Regions are whole frames if N > 1, at least one for each purpose. A single frame is divided into two, with
    a validation strip along one edge whose area is closest to `val_fraction`. Regions of volumes have all
    planes, because neighbouring planes show the same structures. Raises UserError if a patch does not fit or
    the frame is too small to be divided.
    """
    n, *_, height, width = frames.shape
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
    candidates = []  # (difference from val_fraction, axis, thickness of the strip)
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


Places = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""Positions of n patches, each (n,): region, first plane, offset in y and in x, orientation."""


class Patches:
    """Patches of frames (N, C, *S) within regions (R, 5), see `patch_shape`. Only their pixels are read."""

    def __init__(self, frames, regions, patch_size: int):
        # A plain view of a memory map reads nothing either, and avoids the slow indexing of np.memmap.
        self.frames = np.asarray(frames) if isinstance(frames, np.ndarray) else frames
        self.regions = np.asarray(regions, dtype=np.int64).reshape(-1, 5)
        self.patch_size, self.sides = patch_size, patch_shape(frames.shape, patch_size)
        # Patch positions along Z; images count as one plane.
        self._layers = frames.shape[2] - self.sides[0] + 1 if len(frames.shape) == 5 else 1
        _, y0, y1, x0, x1 = self.regions.T
        self._rows = np.maximum(y1 - y0 - patch_size + 1, 0)  # patch positions along each side
        self._columns = np.maximum(x1 - x0 - patch_size + 1, 0)
        self._ends = np.cumsum(self._rows * self._columns * self._layers)
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
        """n random patches (n, C, *sides) in raw counts, float32; every position is equally likely.

        Args:
            n: number of patches, drawn with replacement.
            generator: random numbers of the positions and orientations.
            allowed: orientations that patches may have, see `orientations`. Default: the 8 of squares.
            part: slice of the n patches that is read and returned. Default: all of them.
        """
        return self.cut(self.places(n, generator, allowed, part))

    def places(
        self,
        n: int,
        generator: np.random.Generator,
        allowed: Sequence[int] = range(8),
        part: slice = slice(None),
    ) -> Places:
        """The random positions at which `sample` cuts its patches. Reads no pixels."""
        flat = generator.integers(self._ends[-1], size=n)
        region = np.searchsorted(self._ends, flat, side="right")
        flat = flat - (self._ends - self._rows * self._columns * self._layers)[region]
        flat, plane = np.divmod(flat, self._layers)
        down, right = np.divmod(flat, self._columns[region])
        turns = np.asarray(allowed)[generator.integers(len(allowed), size=n)]
        return region[part], plane[part], down[part], right[part], turns[part]

    def grid(self, limit: int = 64) -> torch.Tensor:
        """The same disjoint patches on each call, up to `limit`: (n, C, *sides) in raw counts, float32.

        They are evenly spread over all regions and not augmented.
        """
        size = self.patch_size
        _, y0, y1, x0, x1 = self.regions.T
        rows, columns = (y1 - y0) // size, (x1 - x0) // size
        layers = self.frames.shape[2] // self.sides[0] if len(self.frames.shape) == 5 else 1
        ends = np.cumsum(rows * columns * layers)
        total = int(ends[-1])
        # A random tile of each stretch of tiles: a fixed stride might select a single column of the image.
        edges = np.arange(min(limit, total) + 1) * total // min(limit, total)
        flat = np.random.default_rng(0).integers(edges[:-1], edges[1:])
        region = np.searchsorted(ends, flat, side="right")
        flat, plane = np.divmod(flat - (ends - rows * columns * layers)[region], layers)
        down, right = np.divmod(flat, columns[region])
        margin_y, margin_x = ((y1 - y0) % size // 2)[region], ((x1 - x0) % size // 2)[region]
        plain = np.zeros(len(flat), dtype=np.int64)
        plane = plane * (self.sides[0] if len(self.frames.shape) == 5 else 1)
        return self.cut((region, plane, margin_y + down * size, margin_x + right * size, plain))

    def cut(self, places: Places) -> torch.Tensor:
        """Reads the patches (n, C, *sides) at these positions, in raw counts, float32."""
        (region, plane, down, right, turns), size = places, self.patch_size
        out = np.empty((len(region), self.frames.shape[1], *self.sides), dtype=np.float32)
        frame, y, x = self.regions[region, 0], self.regions[region, 1] + down, right
        x = x + self.regions[region, 3]
        each = zip(frame.tolist(), plane.tolist(), y.tolist(), x.tolist(), turns.tolist(), strict=True)
        for patch, (i, first, top, left, turn) in zip(out, each, strict=True):
            planes = [slice(first, first + n) for n in self.sides[:-2]]  # none of an image
            position = (i, slice(None), *planes, slice(top, top + size), slice(left, left + size))
            with checks_of():  # a cache of draws checks its data while reading
                source = self.frames[position]
            patch[...] = turned(source, turn)  # converts from any dtype and byte order
        return torch.from_numpy(out)


def turned(patch: np.ndarray, turn: int) -> np.ndarray:
    """A view of a patch (C, *S) in one of the `orientations`."""
    if turn & TRANSPOSED:
        patch = patch.swapaxes(-1, -2)
    if turn & MIRRORED_Y:
        patch = patch[..., ::-1, :]
    if turn & MIRRORED_X:
        patch = patch[..., ::-1]
    return patch[:, ::-1] if turn & MIRRORED_Z else patch
