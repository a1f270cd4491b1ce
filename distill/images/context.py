"""Neighbouring planes along time or depth as further channels of the plane that is denoised."""

import re
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np

from distill.errors import UserError
from distill.images.stack import Stack


@dataclass(eq=False)
class StackInContext(Stack):
    """A stack whose frames (N, C * (2k + 1), Y, X) contain each plane with its neighbours.

    The channels of the plane come first, then those of its neighbours, the nearest first: 0, -1, +1, -2, +2.
    Beyond the first and the last plane the neighbours are mirrored. `context` is an axis and k, such as "T2"
    or "Z1".
    """

    context: str = "T1"

    @cached_property
    def frames(self) -> "FramesInContext":
        return FramesInContext(super().frames, self, *parsed(self.context))


def in_context(stack: Stack, context: str | None) -> Stack:
    """The stack as a StackInContext; unchanged without a context, or if it is a view already.

    UserError if it does not have that axis.
    """
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
    """A context such as "T2" -> (axis "T", 2 planes on either side). UserError for anything else."""
    match = re.fullmatch(r"([TZ])([1-9])", context.strip().upper())
    if not match:
        raise UserError(
            f"context: got '{context}', must be an axis and how many planes on either side, such as T2 or Z1"
        )
    return match[1], int(match[2])


def plane_count(context: str | None) -> int:
    """Number of planes that a network sees at once; 1 without a context."""
    return 1 if context is None else 2 * parsed(context)[1] + 1


class FramesInContext:
    """An array-like (N, C * (2k + 1), Y, X) over the frames (N, C, Y, X) of a stack; see StackInContext.

    Index the first axis with a whole number, a slice or an index array, the others with slices. Only the
    indexed part is read.
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
            if not blocks:
                return np.empty((0, *self.shape[1:]), self.dtype)[(slice(None), channels, *rest)]
            return np.stack(blocks)
        planes = [np.asarray(self._frames[int(i), :, *rest]) for i in self.neighbours[int(index)]]
        return np.concatenate(planes)[channels]


def mirrored(index: np.ndarray, n: int) -> np.ndarray:
    """Mirrors indices at both ends, as often as needed, so that -1 becomes 1, and n becomes n - 2."""
    index = np.abs(index) % (2 * (n - 1))
    return np.minimum(index, 2 * (n - 1) - index)
