"""Reads TIFF, OME-TIFF and ImageJ hyperstacks through tifffile."""

import logging
import os
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import tifffile

from distill.errors import UserError, out_of_memory, went_through
from distill.files import check_readable
from distill.images.chunks import Chunked
from distill.images.intact import check_complete, complaints_as_errors
from distill.images.joined import Joined
from distill.images.linked import check_linked
from distill.images.pages import pages
from distill.images.stack import Stack, checked
from distill.images.units import in_one_unit, symbol

log = logging.getLogger(__name__)

# Other letters of tifffile: I and Q are unnamed page axes; R, P, M and V count positions.
_SYNONYMS = str.maketrans("IQRPMV", "TTSSSS")
_LOSSLESS = {"ADOBE_DEFLATE": "zlib", "DEFLATE": "zlib", "LZW": "lzw", "ZSTD": "zstd"}


def read(path: str | os.PathLike, axes: str | None = None) -> Stack:
    """Opens one TIFF file as a Stack, whose pixels are read when they are indexed.

    Pixels in one uncompressed piece become a memory map, others pages that are decoded when they are indexed.
    Several equal series become the axis S. Axes are those of OME-XML, ImageJ or tifffile metadata, otherwise
    YX or TYX; `axes` overrides them.
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
            pixels, letters = _pixels(tif, series, path)
            compression = _LOSSLESS.get(getattr(first.keyframe.compression, "name", ""))
            stack = Stack(pixels, axes.upper() if axes else letters, path.name, compression=compression)
            _calibrate(stack, tif)
    except UserError:
        raise
    except Exception as error:  # tifffile may raise any error for a damaged file, even ZeroDivisionError
        if out_of_memory(error) or not went_through(error, "tifffile", "imagecodecs", "numpy", "xml"):
            raise
        reason = (str(error) or type(error).__name__).splitlines()[0]
        if path.suffix.lower() not in (".tif", ".tiff") and isinstance(error, tifffile.TiffFileError):
            raise UserError(f"{path}: is no TIFF file; save it as one, in raw counts") from error
        raise UserError(f"{path}: cannot be read ({reason}); pass an intact TIFF file") from error
    return checked(stack)


def _equal_series(tif: tifffile.TiffFile, path: Path) -> list[tifffile.TiffPageSeries]:
    """The first series and all series like it, such as the positions of a stage."""
    kinds = [(s.shape, s.dtype, s.axes) for s in tif.series]
    if others := len(kinds) - sum(kind == kinds[0] for kind in kinds):
        log.warning(f"{path}: {others} series of another shape or type are left out")
    return [s for s, kind in zip(tif.series, kinds, strict=True) if kind == kinds[0]]


def _pixels(tif: tifffile.TiffFile, series: list[tifffile.TiffPageSeries], path: Path) -> tuple[Any, str]:
    axes = series[0].axes.translate(_SYNONYMS)
    if len(series) == 1:
        return _unread(tif, series[0], path), axes
    return Joined(_unread(tif, each, path) for each in series), "S" + axes


def _unread(tif: tifffile.TiffFile, series: tifffile.TiffPageSeries, path: Path) -> "np.memmap | Chunked":
    # A multi-file OME-TIFF may have its pixels in other files, hence the check of each page's parent.
    here = all(page is not None and page.parent is tif for page in series.pages)
    if series.dataoffset is None or not here:
        return pages(series, path)
    dtype = np.dtype(tif.byteorder + series.dtype.char)
    return np.memmap(path, dtype, "r", series.dataoffset, series.shape)


def _calibrate(stack: Stack, tif: tifffile.TiffFile) -> None:
    """Sets pixel size, unit, source and extra from OME-XML, ImageJ or tifffile metadata."""
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
        if pixels and length and (stack.unit or pixels != length):  # 1/1 without a unit means uncalibrated
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
    """A number in the metadata; None if the value is not a number."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
