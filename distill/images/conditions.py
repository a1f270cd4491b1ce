"""Conditions: further input channels beside the noisy image, such as a mask or a map of the noise level."""

from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

import numpy as np

from distill.errors import UserError
from distill.images.context import in_context
from distill.images.sources import Images, as_stack
from distill.images.stack import Stack
from distill.images.statistics import SCAN_BYTES, check_finite
from distill.images.volumes import as_volumes
from samplers.cached import fingerprint


@dataclass(eq=False)
class ConditionedStack(Stack):
    """A stack with frames (N, C + K, Y, X): the channels of `image`, then the K maps of `conditions`."""

    image: Stack = field(kw_only=True)
    conditions: Stack = field(kw_only=True)

    @cached_property
    def frames(self) -> "ConditionedFrames":
        return ConditionedFrames(self.image.frames, self.conditions.frames)


def conditioned(stack: Stack, conditions: Images | None) -> Stack:
    """The stack with its conditions, or unchanged without conditions.

    conditions: one frame for all frames of the stack, or one for each. Raises UserError if their size or
    number does not fit, or if they contain NaN.
    """
    if conditions is None:
        return stack
    maps = as_stack(conditions)
    (n, _, *size), (count, _, *own) = stack.frames.shape, maps.frames.shape
    if own != size or count not in (1, n):
        raise UserError(
            f"conditions: got frames {tuple(maps.frames.shape)} (N, C, Y, X) for {n} noisy frames of "
            f"{size[0]} x {size[1]} pixels; pass one frame, or {n}, of the same size"
        )
    if maps.pixels.dtype.itemsize * maps.pixels.size <= SCAN_BYTES:  # NaN in larger ones shows in the result
        check_finite(maps)
    own_fields = {each.name: getattr(stack, each.name) for each in fields(Stack)}
    return ConditionedStack(**own_fields, image=stack, conditions=maps)


def seen_by(network: Any, name: str, stack: Stack, conditions: Images | None) -> Stack:
    """The images as a network sees them: as volumes, with its context, its conditions. name: for messages."""
    stack = viewed(stack, network.dims, network.context, conditions)
    check_conditions(stack, name, network.conditions)
    return stack


def viewed(stack: Stack, dims: int, context: str | None, conditions: Images | None) -> Stack:
    """The stack as networks of `dims` spatial axes see it. UserError for volumes in a context or with
    conditions."""
    if dims == 2:
        return conditioned(in_context(stack, context), conditions)
    for name, value in {"context": context, "conditions": conditions}.items():
        if value is not None:
            raise UserError(
                f"{name}: is of planes, but the networks have dims={dims}; leave it out, or pass dims=2"
            )
    return as_volumes(stack)


def identity(stack: Stack) -> str | None:
    """A fingerprint of the conditions; None without any."""
    return fingerprint(stack.conditions.frames)[:16] if isinstance(stack, ConditionedStack) else None


def condition_count(stack: Stack) -> int:
    """Number of the last channels of the frames that are conditions."""
    return stack.conditions.frames.shape[1] if isinstance(stack, ConditionedStack) else 0


def check_conditions(stack: Stack, name: str, expected: int) -> None:
    """UserError if the stack does not have the expected number of conditions. name: of the networks."""
    count = condition_count(stack)
    if count == expected:
        return
    if not expected:
        raise UserError(
            f"conditions: got {count}, but {name} uses the image only; pass none, or "
            f"a sampler whose attribute conditions is {count}"
        )
    raise UserError(
        f"conditions: got {count or 'none'}, but {name} needs {expected}, such as a mask; "
        f"pass --conditions with {expected} {'channels' if expected > 1 else 'channel'}"
    )


class ConditionedFrames:
    """Frames (N, C, Y, X) and maps (1 or N, K, Y, X) joined to (N, C + K, Y, X).

    Index the first axis with an integer, a slice or an index array, the others with slices. Only the indexed
    part is read.
    """

    ndim = 4

    def __init__(self, images: Any, maps: Any) -> None:
        self._images, self._maps = images, maps
        self.dtype = np.result_type(images.dtype, maps.dtype)
        n, channels, *size = images.shape
        self.shape = (n, channels + maps.shape[1], *size)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> np.ndarray:
        first, channels, *rest = (*(key if isinstance(key, tuple) else (key,)), *[slice(None)] * 3)[:4]
        index = np.arange(len(self))[first]
        index = index if index.ndim else int(index)
        of_maps = np.minimum(index, len(self._maps) - 1)
        pairs = ((self._images, index), (self._maps, of_maps))
        both = [np.asarray(frames[(i, slice(None), *rest)]) for frames, i in pairs]
        return np.concatenate(both, axis=-3)[..., channels, :, :]
