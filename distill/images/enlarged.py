"""Axes, pixel size and channels of results that are larger than their image or have other channels."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from distill.images.stack import Stack


class Repeated:
    """The pixels of an image, each repeated along Y and X.

    Index it with a whole number or a slice for each axis. Only the indexed part is read.
    """

    def __init__(self, pixels: Any, axes: str, scale: tuple[int, int]) -> None:
        self._pixels, self._by = pixels, [dict(zip("YX", scale, strict=True)).get(a, 1) for a in axes]
        self.dtype, self.ndim = pixels.dtype, len(axes)
        self.shape = tuple(n * by for n, by in zip(pixels.shape, self._by, strict=True))
        if hasattr(pixels, "chunks"):  # the result is written in the same chunks
            self.chunks = pixels.chunks

    def __getitem__(self, key: tuple[Any, ...]) -> np.ndarray:
        places = [np.arange(n)[k] // by for n, k, by in zip(self.shape, key, self._by, strict=True)]
        low = [int(p.min()) if p.ndim else int(p) for p in places]
        read = [
            slice(start, int(p.max()) + 1) if p.ndim else start for start, p in zip(low, places, strict=True)
        ]
        block = np.asarray(self._pixels[tuple(read)])
        index = [p - start for start, p in zip(low, places, strict=True) if p.ndim]
        return block[np.ix_(*index)] if index else block


def like_output(stack: Stack, scale: tuple[int, int], names: Sequence[str]) -> Stack:
    """The stack with more and smaller pixels, and with other channels if `names` contains any.

    It has the axes and metadata with which the result is written.
    """
    if names:
        stack = replace(stack, extra=stack.extra | {"Channel": {"Name": list(names)}})
    if scale == (1, 1):
        return stack
    by = dict(zip("yx", scale, strict=True))
    size = {axis: length / by.get(axis, 1) for axis, length in stack.pixel_size.items()}
    return replace(stack, pixels=Repeated(stack.pixels, stack.axes, scale), pixel_size=size)
