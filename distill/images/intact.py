"""Checks that a TIFF file is complete, because tifffile opens a truncated file as a shorter stack."""

import logging
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tifffile

from distill.errors import UserError

_logger = logging.getLogger("tifffile")
_REPR = re.compile(r"<(tifffile\.)?\w+[^>]*>( raised)?\s*")  # the name of an object of tifffile in a message
# A tag with an unusual value is a matter of the writer, such as a microscope, not a sign of damage.
_ODD_TAG = re.compile(r"<tifffile\.TiffTag \d+ @\d+> (raised ValueError|coercing invalid ASCII)")


@contextmanager
def complaints_as_errors(path: Path) -> Iterator[None]:
    """Raises a UserError after the block for problems that tifffile only logs.

    Such problems are missing planes, which it would fill with zeros, pages that it cannot find, and metadata
    that it cannot read.
    """
    said: list[str] = []

    def keep(record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            return True
        said.append(record.getMessage())
        return False

    level = _logger.level
    _logger.setLevel(min(level or logging.WARNING, logging.WARNING))  # even if a user has silenced it
    _logger.addFilter(keep)
    try:
        yield
    finally:
        _logger.removeFilter(keep)
        _logger.setLevel(level)
    if serious := [text for text in said if not _ODD_TAG.match(text)]:
        raise _incomplete(path, " ".join(_REPR.sub("", serious[0]).split()))


def check_complete(tif: tifffile.TiffFile, series: list[tifffile.TiffPageSeries], path: Path) -> None:
    """UserError if the file ends before its pixels do, or has fewer planes than its metadata state."""
    if not series:
        raise _incomplete(path, "no image is left in it")
    for each in series:
        missing = sum(page is None for page in each.pages)
        if missing:
            raise _incomplete(path, f"{missing} of {len(each.pages)} planes are missing")
        if any(_end(page) > page.parent.filehandle.size for page in each.pages if page is not None):
            raise _incomplete(path, "it ends before its pixels do")
    plane = series[0].keyframe.imagelength * series[0].keyframe.imagewidth
    there = sum(_pixels_there(each) for each in series) // plane
    promised = max(sum(each.size for each in series) // plane, _imagej_planes(tif.imagej_metadata or {}))
    if there < promised:
        raise _incomplete(path, f"its metadata state {promised} planes, it has {there}")


def _pixels_there(series: tifffile.TiffPageSeries) -> int:
    """Number of pixels in the file.

    They lie in one piece behind the first page, whose end numpy checks, or in separate pages.
    """

    in_pages = len(series.pages) * series.keyframe.size
    return in_pages if series.dataoffset is None else series.size


def _end(page: tifffile.TiffPage | tifffile.TiffFrame) -> int:
    """Position in the file after the last pixel; a segment of 0 bytes is sparse and stands for zeros."""
    segments = zip(page.dataoffsets, page.databytecounts, strict=False)
    return max((start + count for start, count in segments if count), default=0)


def _imagej_planes(metadata: dict[str, Any]) -> int:
    sizes = {key: value for key, value in metadata.items() if isinstance(value, int)}
    planes = math.prod(sizes.get(axis, 1) for axis in ("frames", "slices", "channels"))
    return max(planes, sizes.get("images", 1))


def _incomplete(path: Path, why: str) -> UserError:
    return UserError(
        f"{path}: damaged or cut short ({why}); pass an intact copy, or save it anew with ImageJ (Save As)"
    )
