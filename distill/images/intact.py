"""Whether a TIFF file holds all that it promises: tifffile opens one cut short as a shorter stack."""

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
_REPR = re.compile(r"<(tifffile\.)?\w+[^>]*>( raised)?\s*")  # which object of tifffile's says it
# A tag whose value is out of the norm tells of the writer, not of damage: microscopes leave such behind.
_ODD_TAG = re.compile(r"<tifffile\.TiffTag \d+ @\d+> (raised ValueError|coercing invalid ASCII)")


@contextmanager
def complaints_as_errors(path: Path) -> Iterator[None]:
    """A UserError after the block for what tifffile only logged in it: missing planes that it would fill
    with zeros, pages that it cannot find, metadata that it gave up on."""
    said: list[str] = []

    def keep(record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            return True
        said.append(record.getMessage())
        return False

    level = _logger.level
    _logger.setLevel(min(level or logging.WARNING, logging.WARNING))  # also where a user has silenced it
    _logger.addFilter(keep)
    try:
        yield
    finally:
        _logger.removeFilter(keep)
        _logger.setLevel(level)
    if serious := [text for text in said if not _ODD_TAG.match(text)]:
        raise _incomplete(path, " ".join(_REPR.sub("", serious[0]).split()))


def check_complete(tif: tifffile.TiffFile, series: list[tifffile.TiffPageSeries], path: Path) -> None:
    """A UserError where the file ends before its pixels do, or has fewer planes than its metadata say."""
    if not series:
        raise _incomplete(path, "no image is left in it")
    for each in series:
        missing = sum(page is None for page in each.pages)
        if missing:
            raise _incomplete(path, f"{missing} of {len(each.pages)} planes are not in it")
        if any(_end(page) > page.parent.filehandle.size for page in each.pages if page is not None):
            raise _incomplete(path, "it ends before its pixels do")
    plane = series[0].keyframe.imagelength * series[0].keyframe.imagewidth
    there = sum(_pixels_there(each) for each in series) // plane
    promised = max(sum(each.size for each in series) // plane, _imagej_planes(tif.imagej_metadata or {}))
    if there < promised:
        raise _incomplete(path, f"its metadata promise {promised} planes, there are {there}")


def _pixels_there(series: tifffile.TiffPageSeries) -> int:
    """In one piece behind the first page, whose end numpy checks, or in pages of their own."""
    in_pages = len(series.pages) * series.keyframe.size
    return in_pages if series.dataoffset is None else series.size


def _end(page: tifffile.TiffPage | tifffile.TiffFrame) -> int:
    """Where the last of its pixels end; a segment of 0 bytes is sparse, and stands for zeros."""
    segments = zip(page.dataoffsets, page.databytecounts, strict=False)
    return max((start + count for start, count in segments if count), default=0)


def _imagej_planes(metadata: dict[str, Any]) -> int:
    sizes = {key: value for key, value in metadata.items() if isinstance(value, int)}
    planes = math.prod(sizes.get(axis, 1) for axis in ("frames", "slices", "channels"))
    return max(planes, sizes.get("images", 1))


def _incomplete(path: Path, why: str) -> UserError:
    return UserError(
        f"{path}: damaged or cut short ({why}); pass an intact copy, or what ImageJ makes of it by Save As"
    )
