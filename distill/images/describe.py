"""Describes an image in a few lines."""

from collections.abc import Sequence
from typing import Any

from distill.images.sources import ImagePath, read
from distill.images.stack import Stack
from distill.images.statistics import statistics
from samplers import GaussianNoise, neighbour_correlation
from samplers.noise.neighbours import STRONG


def describe_image(path: ImagePath | Sequence[ImagePath]) -> str:
    stack = read(path)
    mean, std = statistics(stack)
    size = ", ".join(f"{axis} {value:g} {stack.unit}" for axis, value in stack.pixel_size.items())
    return "\n".join(
        [
            f"{stack.name}: {stack.pixels.dtype} image, axes {stack.axes}, shape {stack.pixels.shape}",
            f"frames    {stack.frames.shape} (N, C, Y, X)",
            *_chunks(stack),
            f"pixel     {size or 'size unknown'}",
            *_channels(stack),
            f"counts    mean {mean.flatten().tolist()}, std {std.flatten().tolist()}",
            f"noise     {_noise(stack)}",
        ]
    )


def _chunks(stack: Stack) -> list[str]:
    chunks = getattr(stack.pixels, "chunks", None)
    return [f"chunks    {chunks} {stack.axes}, read when they are indexed"] if chunks else []


def _channels(stack: Stack) -> list[str]:
    names = stack.extra.get("Channel", {}).get("Name", [])
    return [f"channels  {', '.join(names)}"] if names else []


def _noise(stack: Stack) -> str:
    frames: Any = stack.frames  # may be LazyFrames: only some tiles are read
    try:
        estimate = GaussianNoise.estimate(frames)
        neighbours = neighbour_correlation(frames)
    except ValueError as error:
        return str(error)
    line = f"variance = {estimate.gain:.4g} * signal + {estimate.offset:.4g}, estimated"
    if max(neighbours) > STRONG:
        return (
            f"{line}; too low, because the noise of neighbouring pixels is correlated ({max(neighbours):.2f})"
        )
    slight = " and ".join(
        f"{each:.2f} along {axis}" for each, axis in zip(neighbours, "yx", strict=True) if each
    )
    return f"{line}; noise of neighbouring pixels slightly correlated, {slight}" if slight else line
