"""Neighbouring planes along time or depth, as further channels of the plane that is denoised."""

import re
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np

from distill.errors import UserError
from distill.images.stack import Stack


@dataclass(eq=False)
class StackInContext(Stack):
    """A stack whose frames are (N, C * (2k + 1), Y, X): each plane's channels, then those of its neighbours,
    the nearest first: 0, -1, +1, -2, +2. Beyond the first and the last plane they are mirrored.

    context: an axis and k, such as "T2" or "Z1".
    """

    context: str = "T1"

    @cached_property
    def frames(self) -> "FramesInContext":
        return FramesInContext(super().frames, self, *parsed(self.context))


def in_context(stack: Stack, context: str | None) -> Stack:
    """The stack as a StackInContext; as it is without a context, or if it is a view already. Errors: images
    without that axis."""
    if context is None or type(stack) is not Stack:
        return stack
    axis, _ = parsed(context)
    if dict(zip(stack.axes, stack.pixels.shape, strict=True)).get(axis, 1) < 2:
        raise UserError(
            f"{stack.name}: axes {stack.axes} of {stack.pixels.shape} have no neighbouring planes along "
            f"{axis}, as context {context} needs; pass a stack that has some, or other --axes"
        )
    return StackInContext(**{each.name: getattr(stack, each.name) for each in fields(stack)}, context=context)


def parsed(context: str) -> tuple[str, int]:
    """'T2' -> the axis T, and 2 planes on either side."""
    found = re.fullmatch(r"([TZ])([1-9])", context.strip().upper())
    if not found:
        raise UserError(
            f"context: got '{context}', must be an axis and how many planes on either side, such as T2 or Z1"
        )
    return found[1], int(found[2])


def plane_count(context: str | None) -> int:
    """How many planes a network sees at once."""
    return 1 if context is None else 2 * parsed(context)[1] + 1


class FramesInContext:
    """(N, C * (2k + 1), Y, X) over the frames (N, C, Y, X) of a stack; see StackInContext.

    Index the first axis with a whole number, a slice or an index array, the others with slices; only what is
    indexed is read.
    """

    ndim = 4

    def __init__(self, frames: Any, stack: Stack, axis: str, reach: int) -> None:
        self._frames, self.dtype = frames, frames.dtype
        n, channels, *size = frames.shape
        self.shape = (n, channels * (2 * reach + 1), *size)
        lead = [(a, length) for a, length in zip(stack.axes, stack.pixels.shape, strict=True) if a in "STZ"]
        index = np.arange(n).reshape([length for _, length in lead])
        at = [a for a, _ in lead].index(axis)
        steps = [0, *(sign * d for d in range(1, reach + 1) for sign in (-1, 1))]
        moved = [
            index.take(mirrored(np.arange(index.shape[at]) + step, index.shape[at]), at) for step in steps
        ]
        self.neighbours = np.stack([each.ravel() for each in moved], axis=1)  # (N, 2k + 1)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> np.ndarray:
        first, channels, *rest = (*(key if isinstance(key, tuple) else (key,)), *[slice(None)] * 3)[:4]
        index = np.arange(len(self))[first]
        if index.ndim:
            blocks = [self[int(i), channels, *rest] for i in index]
            return np.stack(blocks) if blocks else np.empty((0, *self.shape[1:]), self.dtype)
        planes = [np.asarray(self._frames[int(i), :, *rest]) for i in self.neighbours[int(index)]]
        return np.concatenate(planes)[channels]


def mirrored(index: np.ndarray, n: int) -> np.ndarray:
    """-1 is 1, and n is n - 2, as often as needed."""
    index = np.abs(index) % (2 * (n - 1))
    return np.minimum(index, 2 * (n - 1) - index)
