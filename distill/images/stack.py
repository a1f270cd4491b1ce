"""Images of any source as stacks with named axes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from distill.errors import UserError

LETTERS = "STCZYX"


class LazyFrames:
    """Frames (N, C, Y, X) of pixels that cannot be reshaped without a copy, or without reading them.

    Index the first axis with a whole number, a slice or an index array, the others with whole numbers or
    slices. Only the indexed part is read.

    Args:
        pixels: the array, or an object that is indexed like one.
        axes: letters of its dimensions, of STCZYX.
        only: index of the only channel of the frames. Default: all channels.
    """

    ndim = 4

    def __init__(self, pixels: Any, axes: str, only: int | None = None) -> None:
        self._pixels, self._axes, self._only, self.dtype = pixels, axes, only, pixels.dtype
        sizes = dict(zip(axes, pixels.shape, strict=True))
        self._lead = {a: n for a, n in sizes.items() if a in "STZ"}
        channels = sizes.get("C", 1) if only is None else 1
        self.shape = (math.prod(self._lead.values()), channels, sizes["Y"], sizes["X"])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> np.ndarray:
        first, *rest = key if isinstance(key, tuple) else (key,)
        rest = (*rest, *[slice(None)] * 3)[:3]
        index = np.arange(len(self))[first]
        if not index.ndim:
            return self._block(int(index), rest)
        if not index.size:
            return np.empty((0, *self.shape[1:]), self.dtype)[(slice(None), *rest)]
        return np.stack([self._block(int(i), rest) for i in index])

    def _block(self, frame: int, rest: tuple[Any, ...]) -> np.ndarray:
        at = dict(zip(self._lead, np.unravel_index(frame, tuple(self._lead.values())), strict=True))
        c, y, x = (_as_slice(k, n) for k, n in zip(rest, self.shape[1:], strict=True))
        channels = c if self._only is None else slice(self._only, self._only + 1)
        where = at | {"C": channels, "Y": y, "X": x}
        block = np.asarray(self._pixels[tuple(where[a] for a in self._axes)])
        inner = [a for a in self._axes if a in "CYX"]
        block = block.transpose([inner.index(a) for a in "CYX" if a in inner])
        block = block if "C" in inner else block[None]
        if channels is not c or "C" not in inner:
            block = block[c]
        return block[tuple(slice(None) if isinstance(k, slice) else 0 for k in rest)]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype=dtype)

    def groups(self) -> list[np.ndarray]:
        """Groups of frames that lie in the same chunks and are best read together."""
        chunks = dict(zip(self._axes, getattr(self._pixels, "chunks", [1] * len(self._axes)), strict=True))
        sizes = tuple(self._lead.values())
        at = np.indices(sizes).reshape(len(sizes), len(self))  # unravel_index refuses a plane without sizes
        group = np.zeros(len(self), np.int64)
        for (axis, size), index in zip(self._lead.items(), at, strict=True):
            group = group * size + index // chunks[axis]
        order = np.argsort(group, kind="stable")
        return np.split(order, np.flatnonzero(np.diff(group[order])) + 1)

    def chunk_sides(self) -> tuple[int, int]:
        """Sides of the chunks along Y and X; those of a row if the pixels are not in chunks."""
        chunks = dict(zip(self._axes, getattr(self._pixels, "chunks", self._pixels.shape), strict=True))
        return (chunks["Y"] if hasattr(self._pixels, "chunks") else 1), chunks["X"]


def _as_slice(key: Any, n: int) -> slice:
    return key if isinstance(key, slice) else slice(range(n)[key], range(n)[key] + 1)


@dataclass(eq=False)
class Stack:
    """An image of any axis order. `axes` has one letter of STCZYX per dimension of `pixels`."""

    pixels: Any  # an array, or an unread object that is indexed like one: memory maps, chunks, files
    axes: str
    name: str = "array"
    pixel_size: dict[str, float] = field(default_factory=dict)  # of "x", "y", "z", in `unit`
    unit: str = ""
    source: str = "plain"  # the source of `extra`: "ome", "imagej" or "plain"
    extra: dict = field(default_factory=dict)  # metadata of that format, in the terms of tifffile
    compression: str | None = None
    ome_zarr: str | None = None  # OME-Zarr version of the source, also used for writing
    only: int | None = None  # index of the only channel of `frames`; default: all

    @cached_property
    def frames(self) -> "np.ndarray | LazyFrames":
        """The frames (N, C, Y, X), where N runs over S, T, Z in the order of the file.

        They are a view of an array if possible, otherwise a copy. Memory maps and chunks are not read for
        that: without such a view they become LazyFrames.
        """
        if not isinstance(self.pixels, np.ndarray):
            return LazyFrames(self.pixels, self.axes, self.only)
        pixels = self.pixels
        if self.only is not None:
            pixels = pixels[(*[slice(None)] * self.axes.index("C"), slice(self.only, self.only + 1))]
        order = self._lead + "C" * ("C" in self.axes) + "YX"
        moved = pixels.transpose([self.axes.index(a) for a in order])
        if "C" not in self.axes:
            moved = moved[..., None, :, :]
        dims = [d for d in zip(moved.shape[:-3], moved.strides[:-3], strict=True) if d[0] > 1]
        mergeable = all(stride == n * inner for (_, stride), (n, inner) in pairwise(dims))
        if isinstance(self.pixels, np.memmap) and not mergeable:
            return LazyFrames(pixels, self.axes)
        return moved.reshape(-1, *moved.shape[-3:])

    def channel(self, c: int) -> "Stack":
        """The stack with a single channel in its `frames`."""
        return replace(self, only=c, name=f"{self.name}, channel {c}")

    @property
    def _lead(self) -> str:
        return "".join(a for a in self.axes if a in "STZ")

    def restored_axes(self, channels: int) -> str:
        """Axes after `restore` of frames with that many channels; a new C is placed before Y and X."""
        if "C" in self.axes or channels == 1:
            return self.axes
        at = min(self.axes.index("Y"), self.axes.index("X"))
        return self.axes[:at] + "C" + self.axes[at:]

    def check_frames(self, shape: Sequence[int]) -> None:
        """UserError if frames (N, C', Y, X) of this shape do not belong to the stack; C' may be any."""
        n, _, *size = self.frames.shape
        if len(shape) != 4 or [shape[0], *shape[2:]] != [n, *size]:
            raise UserError(
                f"{self.name}: frames of shape {tuple(shape)} do not belong to it; pass"
                f" frames of shape ({n}, any C, {size[0]}, {size[1]})"
            )

    def restore(self, frames: np.ndarray) -> np.ndarray:
        """Frames (N, C', Y, X) -> the stack's axis order, see `restored_axes`. C' may differ from C."""
        self.check_frames(frames.shape)
        sizes = dict(zip(self.axes, self.pixels.shape, strict=True))
        lead = [sizes[a] for a in self._lead]
        axes = self.restored_axes(frames.shape[1])
        have = self._lead + "C" * ("C" in axes) + "YX"
        array = frames.reshape(*lead, *frames.shape[1 if "C" in axes else 2 :])
        return array.transpose([have.index(a) for a in axes])


def checked(stack: Stack) -> Stack:
    """Returns the stack. UserError if its axes, shape or type are not valid."""
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
        raise UserError(f"{where}: shape {shape} has no pixels; pass an image with pixels")
    if stack.pixels.dtype.kind not in "buif" or stack.pixels.dtype.itemsize > 8:
        raise UserError(
            f"{where}: pixels are {stack.pixels.dtype}; convert them to an integer, float or"
            " boolean type of at most 64 bits"
        )
    return stack
