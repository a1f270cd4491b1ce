"""TIFF, OME-TIFF and ImageJ hyperstacks, read through tifffile."""

import logging
import os
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import tifffile

from distill.errors import UserError, out_of_memory, went_through
from distill.files import check_readable
from distill.images.intact import check_complete, complaints_as_errors
from distill.images.linked import check_linked
from distill.images.stack import Stack, checked
from distill.memory import check_memory

log = logging.getLogger(__name__)

# tifffile's other letters: I, Q are unnamed page axes; R, P, M, V number positions.
_SYNONYMS = str.maketrans("IQRPMV", "TTSSSS")
_MICRONS = {"Å": 1e-4, "nm": 1e-3, "µm": 1.0, "mm": 1e3, "cm": 1e4, "inch": 25400, "m": 1e6}
_UNITS = dict.fromkeys(("um", "micron", "microns", "μm", r"\u00b5m"), "µm") | {"in": "inch"}
_LOSSLESS = {"ADOBE_DEFLATE": "zlib", "DEFLATE": "zlib", "LZW": "lzw", "ZSTD": "zstd"}


def read(path: str | os.PathLike, axes: str | None = None) -> Stack:
    """One TIFF file as a Stack: a read-only memory map where its pixels lie in one uncompressed
    piece, otherwise read into memory (as files with several equal series are: these become S).

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


def _pixels(
    tif: tifffile.TiffFile, series: list[tifffile.TiffPageSeries], path: Path
) -> tuple[np.ndarray, str]:
    first = series[0]
    axes = first.axes.translate(_SYNONYMS)
    if len(series) > 1:
        return np.stack([s.asarray() for s in series]), "S" + axes
    # A multi-file OME-TIFF may hold its pixels elsewhere, hence the look at each page's parent.
    if first.dataoffset is not None and all(page is not None and page.parent is tif for page in first.pages):
        dtype = np.dtype(tif.byteorder + first.dtype.char)
        return np.memmap(path, dtype, "r", first.dataoffset, first.shape), axes
    check_memory(first.nbytes, str(path), "save it uncompressed, which needs none, or end other programs")
    return first.asarray(), axes


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
    stack.unit = _UNITS.get(unit.lower(), unit)
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
    units: dict[str, str] = {}
    for axis in "xyz":
        if size := _number(pixels.get(f"PhysicalSize{axis.upper()}")):
            unit = pixels.get(f"PhysicalSize{axis.upper()}Unit", "µm")
            stack.pixel_size[axis], units[axis] = size, _UNITS.get(unit.lower(), unit)
    stack.unit = next(iter(units.values()), "")
    for axis, unit in units.items():  # one unit for all: the first axis'
        stack.pixel_size[axis] *= _MICRONS.get(unit, 1) / _MICRONS.get(stack.unit, 1)
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
