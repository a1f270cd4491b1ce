"""Images as stacks with named axes, whatever they come from: a TIFF, an array, a tensor."""

import math
import os
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from distill.errors import UserError

LETTERS = "STCZYX"
SCAN_BYTES = 2e9  # statistics read all of a smaller stack, a sample of a larger one


class LazyFrames:
    """(N, C, Y, X) over an array (*lead, C, Y, X) whose lead axes cannot be merged without a copy.

    Index the first axis with an int, a slice or an index array; only what is indexed is read.
    """

    ndim = 4

    def __init__(self, array: np.ndarray):
        self._array, self._lead, self.dtype = array, array.shape[:-3], array.dtype
        self.shape = (math.prod(self._lead), *array.shape[-3:])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key) -> np.ndarray:
        first, *rest = key if isinstance(key, tuple) else (key,)
        index = np.arange(len(self))[first]
        if index.ndim:
            return np.stack([self[(i, *rest)] for i in index])
        return self._array[(*np.unravel_index(index, self._lead), *rest)]

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.asarray(self._array.reshape(self.shape), dtype=dtype)


@dataclass(eq=False)
class Stack:
    """An image of any axis order. `axes` has one letter of STCZYX per dimension of `pixels`."""

    pixels: np.ndarray
    axes: str
    name: str = "array"
    pixel_size: dict[str, float] = field(default_factory=dict)  # of "x", "y", "z", in `unit`
    unit: str = ""
    source: str = "plain"  # where `extra` comes from: "ome", "imagej" or "plain"
    extra: dict = field(default_factory=dict)  # that format's metadata in tifffile's terms
    compression: str | None = None

    @cached_property
    def frames(self) -> "np.ndarray | LazyFrames":
        """(N, C, Y, X), N over S, T, Z in the file's order. A view where one exists (memory maps
        are never read: LazyFrames where they have no such view), else a copy."""
        order = self._lead + "C" * ("C" in self.axes) + "YX"
        moved = self.pixels.transpose([self.axes.index(a) for a in order])
        if "C" not in self.axes:
            moved = moved[..., None, :, :]
        dims = [d for d in zip(moved.shape[:-3], moved.strides[:-3]) if d[0] > 1]
        mergeable = all(stride == n * inner for (_, stride), (n, inner) in pairwise(dims))
        if isinstance(self.pixels, np.memmap) and not mergeable:
            return LazyFrames(moved)
        return moved.reshape(-1, *moved.shape[-3:])

    @property
    def _lead(self) -> str:
        return "".join(a for a in self.axes if a in "STZ")

    def restored_axes(self, channels: int) -> str:
        """Axes after `restore` of frames with that many channels: a new C goes before Y and X."""
        if "C" in self.axes or channels == 1:
            return self.axes
        at = min(self.axes.index("Y"), self.axes.index("X"))
        return self.axes[:at] + "C" + self.axes[at:]

    def restore(self, frames: np.ndarray) -> np.ndarray:
        """(N, C', Y, X) -> the stack's axis order, see `restored_axes`. C' may differ from C."""
        sizes = dict(zip(self.axes, self.pixels.shape))
        lead = [sizes[a] for a in self._lead]
        want = (math.prod(lead), "C", sizes["Y"], sizes["X"])
        if len(frames.shape) != 4 or (*frames.shape[:1], "C", *frames.shape[2:]) != want:
            raise UserError(
                f"{self.name}: frames of shape {tuple(frames.shape)} do not belong to it; pass"
                f" frames of shape ({want[0]}, any C, {want[2]}, {want[3]})"
            )
        axes = self.restored_axes(frames.shape[1])
        have = self._lead + "C" * ("C" in axes) + "YX"
        array = frames.reshape(*lead, *frames.shape[1 if "C" in axes else 2 :])
        return array.transpose([have.index(a) for a in axes])


def checked(stack: Stack) -> Stack:
    """The stack itself, if its axes, shape and type make sense; a UserError otherwise."""
    axes, shape, where = stack.axes, tuple(stack.pixels.shape), stack.name
    unknown = "".join(sorted(set(axes) - set(LETTERS)))
    wrong = (
        f"hold the unknown letter {unknown[0]!r}"
        if unknown
        else "repeat a letter"
        if len(set(axes)) < len(axes)
        else f"do not fit shape {shape}"
        if len(axes) != len(shape)
        else "lack Y or X"
        if not {"Y", "X"} <= set(axes)
        else None
    )
    if wrong:
        raise UserError(
            f"{where}: axes {axes!r} {wrong}; pass --axes with one of S T C Z Y X for each"
            f" dimension of {shape}, in any order, Y and X among them"
        )
    if 0 in shape:
        raise UserError(f"{where}: shape {shape} holds no pixels; pass an image that has some")
    if stack.pixels.dtype.kind not in "buif" or stack.pixels.dtype.itemsize > 8:
        raise UserError(
            f"{where}: pixels are {stack.pixels.dtype}; convert them to an integer, float or"
            " boolean type of at most 64 bits"
        )
    return stack


Images = str | os.PathLike | np.ndarray | Tensor | Stack


def as_stack(images: Images, axes: str | None = None) -> Stack:
    """A path, an array, a tensor or a Stack as a Stack. Arrays are YX, TYX or TCYX unless told."""
    if isinstance(images, (str, os.PathLike)):
        from distill.images.tiff import read

        return read(images, axes)
    if isinstance(images, Stack):
        return checked(replace(images, axes=axes.upper() if axes else images.axes))
    if isinstance(images, Tensor):
        images = images.detach().cpu()
        images = (images.float() if images.dtype == torch.bfloat16 else images).numpy()
    pixels = images if isinstance(images, np.ndarray) else np.asarray(images)
    guess = {2: "YX", 3: "TYX", 4: "TCYX"}.get(pixels.ndim, "")
    return checked(Stack(pixels, axes.upper() if axes else guess))


def spread(n: int, count: int) -> np.ndarray:
    """`count` of the indices 0..n-1 (or all n, if fewer), spread evenly; of one, the middle."""
    count = min(n, count)
    return ((np.arange(count) + 0.5) * n / count).astype(int)


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
    for i, row in zip(which[blocks // per_frame], blocks % per_frame * rows):
        block = np.asarray(frames[int(i), :, row : row + rows]).reshape(n_channels, -1)
        block = block.astype(np.float64)
        if not np.isfinite(block).all():
            bad = int((~np.isfinite(block)).sum())
            raise UserError(
                f"{stack.name}: frame {i} holds NaN or infinity ({bad} pixels or more), only finite"
                " numbers are allowed; replace those first"
            )
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
    std = np.sqrt(m2 / count)
    return tuple(v.astype(np.float32).reshape(-1, 1, 1) for v in (mean, std))
