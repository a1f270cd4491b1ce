"""TIFF, OME-TIFF and ImageJ hyperstacks in and out, through tifffile."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import tifffile

from distill.errors import UserError, out_of_memory, went_through
from distill.files import check_file, check_readable, whole_file
from distill.images.chunks import Chunked
from distill.images.intact import check_complete, complaints_as_errors
from distill.images.joined import Joined
from distill.images.linked import check_linked
from distill.images.pages import pages
from distill.images.stack import Stack, checked
from distill.images.units import in_one_unit, symbol

log = logging.getLogger(__name__)

BIG_BYTES = 3.9e9  # larger files are BigTIFF
# tifffile's other letters: I, Q are unnamed page axes; R, P, M, V number positions.
_SYNONYMS = str.maketrans("IQRPMV", "TTSSSS")
_LOSSLESS = {"ADOBE_DEFLATE": "zlib", "DEFLATE": "zlib", "LZW": "lzw", "ZSTD": "zstd"}
_NOT_OME = ("int64", "uint64", "float16")


def read(path: str | os.PathLike, axes: str | None = None) -> Stack:
    """One TIFF file as a Stack, unread: a memory map where its pixels lie in one uncompressed piece,
    otherwise pages that are decoded when they are looked at. Several equal series become S.

    Axes come from OME-XML, ImageJ or tifffile metadata; else YX or TYX; `axes` overrides them all.
    """
    path = check_readable(path, "pass the path of one TIFF file")
    try:
        with complaints_as_errors(path), tifffile.TiffFile(path) as tif:
            check_linked(tif, path)
            series = _equal_series(tif, path)
            check_complete(tif, series, path)
            first = series[0]
            samples = first.keyframe.samplesperpixel
            if samples > 1 and "S" in first.axes and not axes:
                raise UserError(
                    f"{path}: RGB image (axes {first.axes!r}, {samples} samples per pixel), one"
                    " channel expected; convert to grey, or take the samples as channels with"
                    f" --axes {first.axes.replace('S', 'C')}"
                )
            pixels, found = _pixels(tif, series, path)
            compression = _LOSSLESS.get(getattr(first.keyframe.compression, "name", ""))
            stack = Stack(pixels, axes.upper() if axes else found, path.name, compression=compression)
            _calibrate(stack, tif)
    except UserError:
        raise
    except Exception as error:  # a damaged file raises anything in tifffile, ZeroDivisionError too
        if out_of_memory(error) or not went_through(error, "tifffile", "imagecodecs", "numpy", "xml"):
            raise
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{path}: cannot be read ({reason}); pass an intact TIFF file") from error
    return checked(stack)


def _equal_series(tif: tifffile.TiffFile, path: Path) -> list[tifffile.TiffPageSeries]:
    """The first series and all that are like it, such as the positions of a stage."""
    kinds = [(s.shape, s.dtype, s.axes) for s in tif.series]
    if others := len(kinds) - sum(kind == kinds[0] for kind in kinds):
        log.warning(f"{path}: {others} series of another shape or type left out")
    return [s for s, kind in zip(tif.series, kinds, strict=True) if kind == kinds[0]]


def _pixels(tif: tifffile.TiffFile, series: list[tifffile.TiffPageSeries], path: Path) -> tuple[Any, str]:
    axes = series[0].axes.translate(_SYNONYMS)
    parts = [_unread(tif, each, path) for each in series]
    return (parts[0], axes) if len(parts) == 1 else (Joined(parts), "S" + axes)


def _unread(tif: tifffile.TiffFile, series: tifffile.TiffPageSeries, path: Path) -> "np.memmap | Chunked":
    # A multi-file OME-TIFF may hold its pixels elsewhere, hence the look at each page's parent.
    here = all(page is not None and page.parent is tif for page in series.pages)
    if series.dataoffset is None or not here:
        return pages(series, path)
    dtype = np.dtype(tif.byteorder + series.dtype.char)
    return np.memmap(path, dtype, "r", series.dataoffset, series.shape)


def _calibrate(stack: Stack, tif: tifffile.TiffFile) -> None:
    """Fills in pixel size, unit, source and extra from OME-XML, ImageJ or tifffile metadata."""
    if tif.is_ome:
        stack.source = "ome"
        _calibrate_ome(stack, tif.ome_metadata or "")
        return
    meta = tif.imagej_metadata or dict((tif.shaped_metadata or [{}])[0])
    if tif.is_imagej:
        stack.source = "imagej"
        stack.extra = {k: meta[k] for k in ("finterval", "fps", "tunit", "Info") if k in meta}
    tags = tif.pages.first.tags
    inherent = {2: "inch", 3: "cm"}.get(int(tags.valueof("ResolutionUnit", 1)), "")
    unit = str(meta.get("unit") or inherent)
    stack.unit = symbol(unit)
    for axis in "xy":
        pixels, length = tags.valueof(f"{axis.upper()}Resolution", (1, 1))
        if pixels and length and (stack.unit or pixels != length):  # 1/1, no unit: uncalibrated
            stack.pixel_size[axis] = length / pixels
    if spacing := _number(meta.get("spacing")):
        stack.pixel_size["z"] = abs(spacing)


def _calibrate_ome(stack: Stack, xml: str) -> None:
    pixels = ElementTree.fromstring(xml).find("{*}Image/{*}Pixels")
    if pixels is None:
        return
    sizes = {}
    for axis in "xyz":
        if size := _number(pixels.get(f"PhysicalSize{axis.upper()}")):
            sizes[axis] = size, symbol(pixels.get(f"PhysicalSize{axis.upper()}Unit", "µm"))
    stack.pixel_size, stack.unit = in_one_unit(sizes)
    for key in ("TimeIncrement", "TimeIncrementUnit"):
        if value := pixels.get(key):
            stack.extra[key] = value
    names = [channel.get("Name") for channel in pixels.iterfind("{*}Channel")]
    if names and all(names):
        stack.extra["Channel"] = {"Name": names}


def _number(value: Any) -> float | None:
    """A number of somebody's metadata, if it is one."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


ENDINGS = (".tif", ".tiff")


def write(
    path: str | os.PathLike, frames, like: Stack, dtype: str = "float32", overwrite: bool = False
) -> None:
    """Writes frames (N, C', Y, X) in the axis order and with the pixel size of `like`.

    dtype: "float32", or "input" for that of `like` (rounded and clipped where it is an integer).
    .ome.tif gives OME-TIFF (S moves first, Y and X last; OME keeps no axes of size 1). Any other
    .tif is an ImageJ hyperstack where ImageJ can hold it unchanged (TZCYX order, no axes of size 1,
    uint8, uint16 or float32, < 3.9 GB), else tifffile's own layout with axes in its metadata.
    The file appears under its name only when it is complete.
    """
    path = check_file(path, ENDINGS, overwrite)
    if dtype not in ("float32", "input"):
        raise UserError(f"{path}: dtype {dtype!r} is not known; pass 'float32' or 'input'")
    frames = np.asarray(frames.detach().cpu() if hasattr(frames, "detach") else frames)
    array, axes = like.restore(frames), like.restored_axes(frames.shape[1])
    target = np.dtype("f4") if dtype == "float32" else like.pixels.dtype.newbyteorder("=")
    ome = path.name.lower().endswith((".ome.tif", ".ome.tiff"))
    if ome and target.name in _NOT_OME:
        raise UserError(f"{path}: OME-TIFF cannot hold {target}; pass a .tif name, or float32")
    with whole_file(path) as part:
        _write_tiff(part, array, axes, target, like, ome)


def _write_tiff(path: Path, array: np.ndarray, axes: str, dtype: np.dtype, like: Stack, ome: bool) -> None:
    big = array.size * dtype.itemsize > BIG_BYTES
    unit = "um" if like.unit == "µm" and not ome else like.unit
    imagej = not (ome or big) and unit.isascii() and dtype.name in ("uint8", "uint16", "float32")
    imagej = imagej and list(axes) == [a for a in "TZCYX" if a in axes] and 1 not in array.shape[:-2]
    thin = array.shape[-1] == 1  # an X of 1 px, which tifffile leaves out
    imagej = imagej and not thin
    kind = "ome" if ome else "imagej" if imagej else "plain"
    meta = dict(like.extra) if like.source == kind else {}
    options: dict[str, Any] = {"photometric": "minisblack", "compression": like.compression}
    series = [array]
    if ome:
        last = [a for a in axes if a not in "SYX"] + ["Y", "X"]
        array = array.transpose([axes.index(a) for a in ["S"] * ("S" in axes) + last])
        series, axes = (list(array) if "S" in axes else [array]), "".join(last)
        for axis, size in like.pixel_size.items():
            key = f"PhysicalSize{axis.upper()}"
            meta |= {key: size, f"{key}Unit": {"inch": "in", "": "pixel"}.get(unit, unit)}
        channels = series[0].shape[axes.index("C")] if "C" in axes else 1
        if "Channel" in meta and len(meta["Channel"]["Name"]) != channels:
            del meta["Channel"]
    else:
        x, y, z = (like.pixel_size.get(a) for a in "xyz")
        meta |= {k: v for k, v in {"unit": unit, "spacing": z}.items() if v}
        if sides := [side for side in (x, y) if side]:  # one of them stands for both
            options["resolution"] = (1 / sides[0], 1 / sides[-1])
    meta["axes"] = axes
    with tifffile.TiffWriter(path, bigtiff=big, ome=ome, imagej=imagej) as tif:
        for image in series:
            # Plane by plane: the conversion never holds more than one plane.
            planes = _planes(image, dtype)
            planes = np.stack([*planes]).reshape(image.shape) if thin else planes
            tif.write(planes, shape=image.shape, dtype=dtype, metadata=meta, **options)


def _planes(array: np.ndarray, dtype: np.dtype) -> Iterator[np.ndarray]:
    """The last two dimensions at a time, converted: rounded and clipped for an integer dtype."""
    for index in np.ndindex(array.shape[:-2]):
        plane = np.asarray(array[index])
        if dtype.kind in "ui" and plane.dtype != dtype:
            info = np.iinfo(dtype)
            wide = plane.astype(np.float64)
            high = float(info.max)
            high = np.nextafter(high, 0) if high > info.max else high  # 2**63 - 1 is no float64
            plane = np.clip(np.rint(wide), info.min, high)
        elif dtype.kind == "b":
            plane = plane >= 0.5
        yield np.ascontiguousarray(plane, dtype=dtype)
