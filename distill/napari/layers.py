"""Converts napari layers to stacks, and results to layers at the position of their input."""

# pyright: reportMissingImports=false

from dataclasses import replace
from typing import Any

import numpy as np
from napari.layers import Image

from distill.datasets import specimen
from distill.errors import UserError
from distill.images.sources import as_stack
from distill.images.stack import LETTERS, Stack, checked

AXES = {2: "YX", 3: "TYX", 4: "TZYX", 5: "TCZYX"}  # by number of dimensions, for axes without names
PIXEL = 0.1  # µm; pixel size of the specimen, whose cells are 6 µm wide
KEPT = ("rotate", "shear", "affine", "units", "axis_labels")


def stack_of(layer: Image, dims: int = 2) -> Stack:
    """The image of a layer, in full resolution. Lazy layers are not read.

    dims: of the networks. Three axes without names are TYX for those of images, and ZYX for those of volumes.
    Raises UserError for RGB, for fewer than 2 or more than 5 dimensions, and for invalid images.
    """
    if layer.rgb:
        raise UserError(f"{layer.name}: is an RGB picture; pass raw counts, one layer for each channel")
    data = layer.data[0] if layer.multiscale else layer.data
    axes = _axes(layer, dims)
    if getattr(data, "chunks", None) and not hasattr(data, "__dask_graph__"):  # Zarr or HDF5
        return checked(Stack(data, axes, layer.name))
    return replace(as_stack(data, axes), name=layer.name)


def _axes(layer: Image, dims: int) -> str:
    """Axes from the first letters of the axis labels (time, z, ...), or by number if these are not valid."""
    if layer.ndim not in AXES:
        raise UserError(f"{layer.name}: has {layer.ndim} dimensions, must be 2 to 5; pass a part of it")
    letters = "".join(label.strip()[:1].upper() for label in layer.axis_labels)
    is_valid = len(set(letters) & set(LETTERS)) == layer.ndim and {"Y", "X"} <= set(letters)
    return letters if is_valid else "ZYX" if layer.ndim == dims == 3 else AXES[layer.ndim]


def shown_frame(layer: Image, stack: Stack, point: tuple[float, ...]) -> int:
    """Index of the frame that a viewer shows. point: position of its sliders in world coordinates."""
    place = dict(zip(stack.axes, np.round(layer.world_to_data(point)).astype(int), strict=True))
    sizes = dict(zip(stack.axes, stack.pixels.shape, strict=True))
    lead = [a for a in stack.axes if a in "STZ"]
    if not lead:
        return 0
    return int(np.ravel_multi_index([place[a] for a in lead], [sizes[a] for a in lead], mode="clip"))


def beside(layer: Image, image: np.ndarray, name: str) -> dict[str, Any]:
    """Arguments of `add_image` for a result of the layer, which may have more pixels or channels."""
    shape, options = list(image.shape), {key: getattr(layer, key) for key in KEPT}
    if len(shape) > layer.ndim:
        options["channel_axis"] = channel = len(shape) - 3  # where `Stack.restore` inserts it
        del shape[channel]
    size = layer.data[0].shape if layer.multiscale else layer.data.shape
    ratio = np.array(size) / shape
    first = layer.scale * (ratio - 1) / 2  # offset of the centre of the first pixel
    place = {"scale": layer.scale * ratio, "translate": layer.translate + first}
    return options | place | {"name": f"{layer.name} {name}"}


def specimen_layers() -> list[tuple[np.ndarray, dict[str, Any], str]]:
    """The noisy built-in specimen, and its ground truth as a hidden layer."""
    cells = specimen(5, 256)
    place = {"scale": (1, PIXEL, PIXEL), "units": ("pixel", "µm", "µm"), "axis_labels": ("t", "y", "x")}
    return [
        (cells.clean, place | {"name": "specimen truth", "visible": False}, "image"),
        (cells.noisy, place | {"name": "specimen"}, "image"),
    ]
