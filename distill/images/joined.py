"""Joins many files to one image."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from distill.errors import UserError
from distill.images.chunks import written_out
from distill.images.stack import Stack


class Mapped:
    """A memory map that is opened for each access, because no process may keep thousands of files open."""

    def __init__(self, pixels: np.memmap) -> None:
        order = "C" if pixels.flags.c_contiguous else "F"
        self._made_of: Any = (pixels.filename, pixels.dtype, "r", pixels.offset, pixels.shape, order)
        self.shape, self.dtype, self.ndim, self.size = pixels.shape, pixels.dtype, pixels.ndim, pixels.size

    def __getitem__(self, key: Any) -> np.ndarray:
        return np.array(np.memmap(*self._made_of)[key])  # a copy, because a view keeps the file open


def closed(pixels: Any) -> Any:
    """The pixels; a memory map as one that keeps no file open. Call it before the next file is opened."""
    return Mapped(pixels) if isinstance(pixels, np.memmap) else pixels


class Joined:
    """Arrays of equal shape and type as one array with a new first axis; indexed like `Chunked`."""

    def __init__(self, parts: Iterable[Any]) -> None:
        """parts: an iterator may open them one by one, and only one is open at a time."""
        self._parts = [closed(each) for each in parts]
        n, first = len(self._parts), self._parts[0]
        self.shape, self.dtype = (n, *first.shape), first.dtype
        self.ndim, self.size = len(self.shape), n * first.size
        if hasattr(first, "chunks"):
            self.chunks = (1, *first.chunks)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> np.ndarray:
        first, *rest = written_out(key, self.ndim)
        if not isinstance(first, slice):
            return self._parts[first][tuple(rest)]
        parts = [part[tuple(rest)] for part in self._parts[first]]
        return np.stack(parts) if parts else np.empty((0, *self.shape[1:]), self.dtype)[(slice(None), *rest)]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[...], dtype=dtype)


def join(stacks: Sequence[Stack], name: str) -> Stack:
    """Joins images of equal shape, axes and type along T, or along S if they have a T already."""
    first = stacks[0]
    for each in stacks[1:]:
        if _kind(each) != _kind(first):
            raise UserError(
                f"{name}: {each.name} is {_kind(each)}, but {first.name} is {_kind(first)}; pass images "
                "of one shape and type together, and others by themselves"
            )
    letter = next((each for each in "TSZ" if each not in first.axes), None)
    if letter is None:
        raise UserError(
            f"{name}: images of axes {first.axes} leave no axis to join them along; pass one of them"
        )
    return replace(
        first, pixels=Joined([each.pixels for each in stacks]), axes=letter + first.axes, name=name
    )


def _kind(stack: Stack) -> str:
    return f"{stack.axes} {tuple(stack.pixels.shape)} {stack.pixels.dtype.name}"


def with_axes(stack: Stack, axes: str) -> Stack:
    """The stack with other axes; for joined files, `axes` may be those of a single file."""
    joined = isinstance(stack.pixels, Joined) and len(axes) == stack.pixels.ndim - 1
    letter = stack.axes[: int(joined)]
    return replace(stack, axes=letter + axes.upper())
