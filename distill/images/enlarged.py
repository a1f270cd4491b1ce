"""What an answer with more pixels or other channels than its image is written like."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from distill.images.stack import Stack


class Repeated:
    """Pixels of an image of these axes, each repeated along Y and X; only what is indexed is read.

    Index it with a whole number or a slice for each axis.
    """

    def __init__(self, pixels: Any, axes: str, scale: tuple[int, int]) -> None:
        self._pixels, self._by = pixels, [dict(zip("YX", scale, strict=True)).get(a, 1) for a in axes]
        self.dtype, self.ndim = pixels.dtype, len(axes)
        self.shape = tuple(n * by for n, by in zip(pixels.shape, self._by, strict=True))
        if hasattr(pixels, "chunks"):  # in which the answer is written, too
            self.chunks = pixels.chunks

    def __getitem__(self, key: tuple[Any, ...]) -> np.ndarray:
        places = [np.arange(n)[k] // by for n, k, by in zip(self.shape, key, self._by, strict=True)]
        low = [int(p.min()) if p.ndim else int(p) for p in places]
        read = [
            slice(start, int(p.max()) + 1) if p.ndim else start for start, p in zip(low, places, strict=True)
        ]
        block = np.asarray(self._pixels[tuple(read)])
        kept = [p - start for start, p in zip(low, places, strict=True) if p.ndim]
        return block[np.ix_(*kept)] if kept else block


def like_output(stack: Stack, scale: tuple[int, int], names: Sequence[str]) -> Stack:
    """An image with the axes of this one, but with more and smaller pixels, and with these names of
    channels, if there are any."""
    if names:
        stack = replace(stack, extra=stack.extra | {"Channel": {"Name": list(names)}})
    if scale == (1, 1):
        return stack
    by = dict(zip("yx", scale, strict=True))
    size = {axis: length / by.get(axis, 1) for axis, length in stack.pixel_size.items()}
    return replace(stack, pixels=Repeated(stack.pixels, stack.axes, scale), pixel_size=size)
