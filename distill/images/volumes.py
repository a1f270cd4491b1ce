"""Stacks as volumes, whose planes along Z a network sees together."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np

from distill.errors import UserError
from distill.images.stack import Stack


@dataclass(eq=False)
class Volumes(Stack):
    """A stack whose frames are volumes (N, C, Z, Y, X); N runs over S and T in the order of the file."""

    @cached_property
    def planes(self) -> Stack:
        """The same stack with frames (N * Z, C, Y, X)."""
        return Stack(**{each.name: getattr(self, each.name) for each in fields(Stack)})

    @cached_property
    def frames(self) -> "VolumeFrames":
        lead = {a: n for a, n in zip(self.axes, self.pixels.shape, strict=True) if a in "STZ"}
        numbers = np.arange(len(self.planes.frames)).reshape(list(lead.values()))
        along_z = np.moveaxis(numbers, list(lead).index("Z"), -1)
        return VolumeFrames(self.planes.frames, along_z.reshape(-1, lead["Z"]))

    def check_frames(self, shape: Sequence[int]) -> None:
        n, _, *size = self.frames.shape
        if len(shape) != 5 or [shape[0], *shape[2:]] != [n, *size]:
            raise UserError(
                f"{self.name}: volumes of shape {tuple(shape)} do not belong to it; pass volumes of shape "
                f"({n}, any C, {', '.join(map(str, size))})"
            )

    def restore(self, frames: np.ndarray) -> np.ndarray:
        """Volumes (N, C', Z, Y, X) -> the stack's axis order, see Stack.restore."""
        self.check_frames(frames.shape)
        planes = np.empty((frames.shape[0] * frames.shape[2], *frames.shape[1:2], *frames.shape[3:]), "f4")
        planes[self.frames.numbers.ravel()] = frames.swapaxes(1, 2).reshape(planes.shape)
        return self.planes.restore(planes)


class VolumeFrames:
    """An array-like (N, C, Z, Y, X) over planes (N * Z, C, Y, X). numbers: of the planes, (N, Z).

    Index the first axis with a whole number, a slice or an index array, the others with slices. Only the
    indexed part is read.
    """

    ndim = 5

    def __init__(self, planes: Any, numbers: np.ndarray) -> None:
        self._planes, self.numbers, self.dtype = planes, numbers, planes.dtype
        _, channels, height, width = planes.shape
        self.shape = (len(numbers), channels, numbers.shape[1], height, width)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> np.ndarray:
        first, channels, z, y, x = (*(key if isinstance(key, tuple) else (key,)), *[slice(None)] * 4)[:5]
        index = np.arange(len(self))[first]
        if index.ndim:
            blocks = [self[int(i), channels, z, y, x] for i in index]
            if not blocks:
                return np.empty((0, *self.shape[1:]), self.dtype)[:, channels, z, y, x]
            return np.stack(blocks)
        planes = [np.asarray(self._planes[int(i), channels, y, x]) for i in self.numbers[int(index), z]]
        return np.stack(planes, axis=1)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype=dtype)


def as_volumes(stack: Stack) -> Volumes:
    """The stack as volumes. UserError if it has no Z axis of several planes."""
    if dict(zip(stack.axes, stack.pixels.shape, strict=True)).get("Z", 1) < 2:
        raise UserError(
            f"{stack.name}: axes {stack.axes} of {tuple(stack.pixels.shape)} have no Z of several planes, as "
            "networks with dims=3 need; pass a stack that has one, other --axes such as ZYX, or dims=2"
        )
    return Volumes(**{each.name: getattr(stack, each.name) for each in fields(Stack)})


def in_planes(
    stack: Stack, first: int, images: Sequence[np.ndarray]
) -> Iterator[tuple[int, Sequence[np.ndarray]]]:
    """(first frame, images (F, C, h, w)) of a block as targets write it, of volumes (F, C, Z, h, w) too."""
    if not isinstance(stack, Volumes):
        yield first, images
        return
    for i, numbers in enumerate(stack.frames.numbers[first : first + len(images[0])]):
        planes = [image[i].swapaxes(0, 1) for image in images]  # (Z, C, h, w)
        if (np.diff(numbers) == 1).all():
            yield int(numbers[0]), planes
        else:
            for z, number in enumerate(numbers.tolist()):
                yield number, [each[z : z + 1] for each in planes]
