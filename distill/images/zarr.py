"""Reads OME-Zarr 0.4 and 0.5, and bare Zarr arrays (v2 and v3), chunk by chunk."""

import importlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distill.errors import UserError, out_of_memory
from distill.extras import extra
from distill.images.chunks import Chunked, span
from distill.images.stack import Stack, checked
from distill.images.units import in_one_unit, symbol

log = logging.getLogger(__name__)
GUESSES = {2: "YX", 3: "TYX", 4: "TCYX", 5: "TCZYX"}  # axes of an array without names of its axes
METADATA = ("zarr.json", ".zgroup", ".zarray")


def is_zarr(path: str) -> bool:
    """Whether a path is Zarr, by its name or its contents."""
    return path.rstrip("/").lower().endswith(".zarr") or any(
        (Path(path) / name).is_file() for name in METADATA
    )


def read(path: str, axes: str | None = None) -> Stack:
    """Opens the largest image of an OME-Zarr, or a Zarr array, as a Stack.

    The path is a folder, or a URL if fsspec is installed. Axes are those of the OME metadata or of the
    array's dimension_names, otherwise YX, TYX, TCYX or TCZYX; `axes` overrides them.
    """
    path = path.rstrip("/")
    node = _open(path)
    attributes = dict(node.attrs)
    ome = attributes.get("ome", attributes)
    if hasattr(node, "chunks"):
        names = getattr(node.metadata, "dimension_names", None)
        letters = _letters(names) if names and all(names) else GUESSES.get(node.ndim, "")
        return checked(Stack(_unread(node, path), axes.upper() if axes else letters, _name(path)))
    if "bioformats2raw.layout" in ome:
        if "1" in node:
            log.warning(f"{path}: contains several images, the first is read; pass {path}/1 for the next")
        return read(f"{path}/0", axes)
    if "plate" in ome or "well" in ome:
        raise UserError(f"{path}: a plate or one of its wells; pass one of its images, such as {path}/A/1/0")
    version = "0.5" if "ome" in attributes else "0.4"
    model = _model(path, ome, version)
    multiscale = model.multiscales[0]
    dataset = multiscale.datasets[0]
    array = _open(f"{path}/{dataset.path}")
    if not hasattr(array, "chunks"):
        raise UserError(
            f"{path}: {dataset.path} is no array, although its OME metadata say so; pass an intact copy"
        )
    letters = _letters([axis.name for axis in multiscale.axes])
    stack = Stack(_unread(array, f"{path}/{dataset.path}"), axes.upper() if axes else letters, _name(path))
    _calibrate(stack, multiscale, letters)
    if len(labels := _labels(path, ome)) == dict(zip(stack.axes, array.shape, strict=False)).get("C", 1):
        stack.extra["Channel"] = {"Name": labels}
    stack.ome_zarr = version
    return checked(stack)


def _open(path: str) -> Any:
    zarr = extra("zarr", "zarr", path)
    if "://" in path:
        extra("fsspec", "zarr", path)
    try:
        return zarr.open(path, mode="r")
    except Exception as error:  # broken metadata may raise any error, even AttributeError
        if out_of_memory(error):
            raise
        raise UserError(
            f"{path}: contains no Zarr array or group that can be read ({_reason(error)}); pass an intact "
            "OME-Zarr, or a Zarr array"
        ) from error


def _model(path: str, ome: dict[str, Any], version: str) -> Any:
    """The validated OME metadata, without `omero`, of which only the channel names are used."""
    yaozarrs = extra("yaozarrs", "zarr", path)
    if "multiscales" not in ome:
        raise UserError(
            f"{path}: a Zarr group without OME metadata; pass one of its arrays, such as {path}/0"
        )
    image = yaozarrs.v05.Image if version == "0.5" else yaozarrs.v04.Image
    try:
        return image.model_validate({key: value for key, value in ome.items() if key != "omero"})
    except ValueError as error:
        raise UserError(
            f"{path}: its OME metadata are broken ({_reason(error)}); correct them, or pass the array in it, "
            f"such as {path}/0, with --axes"
        ) from error


def _reason(error: Exception) -> str:
    """The error in one line; of several errors of pydantic the first, with its position."""
    errors: Any = getattr(error, "errors", None)
    if errors:
        first = errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}".splitlines()[0]
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _letters(names: Sequence[Any]) -> str:
    short, names = {"time": "T", "channel": "C"}, [str(name) for name in names]
    return "".join(short.get(name.lower(), name[:1].upper()) for name in names)


def _name(path: str) -> str:
    return path.rpartition("/")[2] if "://" in path else Path(path).name


def _unread(array: Any, path: str) -> Chunked:
    stored = array.shards or array.chunks  # chunks inside a shard are read one by one
    pixels = _reader(array, path)

    def read_chunk(index: tuple[int, ...]) -> np.ndarray:
        return pixels(span(index, array.shape, array.chunks))

    def where(index: tuple[int, ...]) -> str:
        file = tuple(i * c // s for i, c, s in zip(index, array.chunks, stored, strict=True))
        return f"{path}/{array.metadata.encode_chunk_key(file)}"

    return Chunked(array.shape, array.dtype, array.chunks, read_chunk, where)


def _reader(array: Any, path: str) -> Callable[[tuple[slice, ...]], np.ndarray]:
    """Function from slices to pixels, by tensorstore, or by zarr for what tensorstore cannot open.

    zarr spends six times the time of decoding in Python, where it holds up the training that it reads for.
    """
    driver = "zarr3" if array.metadata.zarr_format == 3 else "zarr"
    spec = {"driver": driver, "kvstore": {"driver": "file", "path": f"{Path(path).resolve()}/"}}
    try:
        opened = importlib.import_module("tensorstore").open(spec, read=True, open=True).result()
    except Exception:  # not installed, a codec of zarr alone, or a URL; zarr reports what is broken
        return array.__getitem__
    return (lambda key: opened[key].read().result()) if opened.shape == array.shape else array.__getitem__


def _calibrate(stack: Stack, multiscale: Any, axes: str) -> None:
    """Sets pixel size and time between frames, in the terms of OME-TIFF."""
    scale = np.ones(len(axes))
    for each in (
        *multiscale.datasets[0].coordinateTransformations,
        *(multiscale.coordinateTransformations or ()),
    ):
        scale = scale * getattr(each, "scale", 1)  # other transformations are translations
    stack.source = "ome"
    units = {axis: symbol(each.unit or "") for axis, each in zip(axes, multiscale.axes, strict=True)}
    sizes = {a: (float(s), units[a]) for a, s in zip(axes, scale, strict=True)}
    stack.pixel_size, stack.unit = in_one_unit({a.lower(): sizes[a] for a in "XYZ" if units.get(a)})
    if units.get("T"):
        stack.extra |= {"TimeIncrement": sizes["T"][0], "TimeIncrementUnit": units["T"]}


def _labels(path: str, ome: dict[str, Any]) -> list[str]:
    """Names of the channels; none if these metadata are broken, because nothing else depends on them."""
    try:
        labels = [channel["label"] for channel in ome["omero"]["channels"]]
    except (KeyError, TypeError):
        return []
    if all(isinstance(label, str) and label for label in labels):
        return labels
    log.warning(f"{path}: names of channels are no texts, and are left out")
    return []
