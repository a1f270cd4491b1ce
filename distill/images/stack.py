"""Images as stacks with named axes, whatever they come from: a TIFF, an array, a tensor."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise

import numpy as np

from distill.errors import UserError

LETTERS = "STCZYX"


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
        dims = [d for d in zip(moved.shape[:-3], moved.strides[:-3], strict=True) if d[0] > 1]
        mergeable = all(stride == n * inner for (_, stride), (n, inner) in pairwise(dims))
        if isinstance(self.pixels, np.memmap) and not mergeable:
            return LazyFrames(moved)
        return moved.reshape(-1, *moved.shape[-3:])

    def channel(self, c: int) -> "Stack":
        """One channel of an image that has several: a view."""
        before = (slice(None),) * self.axes.index("C")
        return replace(self, pixels=self.pixels[(*before, slice(c, c + 1))], name=f"{self.name}, channel {c}")

    @property
    def _lead(self) -> str:
        return "".join(a for a in self.axes if a in "STZ")

    def restored_axes(self, channels: int) -> str:
        """Axes after `restore` of frames with that many channels: a new C goes before Y and X."""
        if "C" in self.axes or channels == 1:
            return self.axes
        at = min(self.axes.index("Y"), self.axes.index("X"))
        return self.axes[:at] + "C" + self.axes[at:]

    def check_frames(self, shape: Sequence[int]) -> None:
        """A UserError where frames (N, C', Y, X) of this shape do not belong to it; C' may be any."""
        n, _, *size = self.frames.shape
        if len(shape) != 4 or [shape[0], *shape[2:]] != [n, *size]:
            raise UserError(
                f"{self.name}: frames of shape {tuple(shape)} do not belong to it; pass"
                f" frames of shape ({n}, any C, {size[0]}, {size[1]})"
            )

    def restore(self, frames: np.ndarray) -> np.ndarray:
        """(N, C', Y, X) -> the stack's axis order, see `restored_axes`. C' may differ from C."""
        self.check_frames(frames.shape)
        sizes = dict(zip(self.axes, self.pixels.shape, strict=True))
        lead = [sizes[a] for a in self._lead]
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
