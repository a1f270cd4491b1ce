"""napari's layers as stacks, and answers as layers that lie where their input does."""

# pyright: reportMissingImports=false

from dataclasses import replace
from typing import Any

import numpy as np
from napari.layers import Image

from distill.datasets import specimen
from distill.errors import UserError
from distill.images.sources import as_stack
from distill.images.stack import LETTERS, Stack, checked

AXES = {2: "YX", 3: "TYX", 4: "TZYX", 5: "TCZYX"}  # of layers whose axes have no names
PIXEL = 0.1  # µm, of the specimen: its cells are then 6 µm wide
KEPT = ("rotate", "shear", "affine", "units", "axis_labels")


def stack_of(layer: Image) -> Stack:
    """A layer's image; unread where the layer is lazy, and the full resolution where there are several.

    Errors: RGB, fewer than 2 or more than 5 dimensions, and what no Stack can hold.
    """
    if layer.rgb:
        raise UserError(f"{layer.name}: is an RGB picture; pass raw counts, one layer for each channel")
    data = layer.data[0] if layer.multiscale else layer.data
    axes = _axes(layer)
    if getattr(data, "chunks", None) and not hasattr(data, "__dask_graph__"):  # Zarr or HDF5: by chunks
        return checked(Stack(data, axes, layer.name))
    return replace(as_stack(data, axes), name=layer.name)


def _axes(layer: Image) -> str:
    """By the first letters of its axis labels (time, z, ...), if they make sense."""
    if layer.ndim not in AXES:
        raise UserError(f"{layer.name}: has {layer.ndim} dimensions, must be 2 to 5; pass a part of it")
    named = "".join(label.strip()[:1].upper() for label in layer.axis_labels)
    sensible = len(set(named) & set(LETTERS)) == layer.ndim and {"Y", "X"} <= set(named)
    return named if sensible else AXES[layer.ndim]


def shown_frame(layer: Image, stack: Stack, point: tuple[float, ...]) -> int:
    """Which of the stack's frames a viewer shows, whose sliders are at this point of the world."""
    place = dict(zip(stack.axes, np.round(layer.world_to_data(point)).astype(int), strict=True))
    sizes = dict(zip(stack.axes, stack.pixels.shape, strict=True))
    lead = [a for a in stack.axes if a in "STZ"]
    if not lead:
        return 0
    return int(np.ravel_multi_index([place[a] for a in lead], [sizes[a] for a in lead], mode="clip"))


def beside(layer: Image, image: np.ndarray, name: str) -> dict[str, Any]:
    """Arguments of `add_image` for an answer to the layer, which may have more pixels or channels."""
    shape, options = list(image.shape), {key: getattr(layer, key) for key in KEPT}
    if len(shape) > layer.ndim:
        options["channel_axis"] = channel = len(shape) - 3  # where `Stack.restore` puts a new one
        del shape[channel]
    size = layer.data[0].shape if layer.multiscale else layer.data.shape
    ratio = np.array(size) / shape
    first = layer.scale * (ratio - 1) / 2  # the centre of a smaller pixel in the corner
    place = {"scale": layer.scale * ratio, "translate": layer.translate + first}
    return options | place | {"name": f"{layer.name} {name}"}


def specimen_layers() -> list[tuple[np.ndarray, dict[str, Any], str]]:
    """The built-in specimen with its noise, and its ground truth, hidden below it."""
    cells = specimen(5, 256)
    place = {"scale": (1, PIXEL, PIXEL), "units": ("pixel", "µm", "µm"), "axis_labels": ("t", "y", "x")}
    return [
        (cells.clean, place | {"name": "specimen truth", "visible": False}, "image"),
        (cells.noisy, place | {"name": "specimen"}, "image"),
    ]
