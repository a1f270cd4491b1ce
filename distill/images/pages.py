"""Pages of a TIFF file, decoded when they are indexed, by single tiles or some strips at a time."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from distill.images.chunks import Chunked, span

LEAST_BYTES = 2**18  # smallest chunk, because some writers make strips of one row
_JPEG = (6, 7, 34892, 33007)  # compressions whose segments need the tables of the page


def pages(series: tifffile.TiffPageSeries, path: Path) -> Chunked:
    """The pixels of a series as an unread array.

    The file is opened anew for each chunk, so it need not stay open.
    """

    page = series.keyframe
    lead = series.shape[: len(series.shape) - len(page.shape)]
    if math.prod(lead) != len(series.pages) or series.shape[len(lead) :] != page.shape:
        raise ValueError(f"pages of {page.shape} do not make up {series.shape}")
    for each in filter(None, series.pages):
        each.parent.filehandle.lock = True
    if page.compression in _JPEG:
        _ = page.decode  # a cached property that looks into the file, which is closed later
    sides = _sides(page)
    chunks = (*[1] * len(lead), *sides)

    def read(index: tuple[int, ...]) -> np.ndarray:
        where = span(index, series.shape, chunks)
        number = int(np.ravel_multi_index(index[: len(lead)], lead)) if lead else 0
        page: Any = series.pages[number]  # a TiffPage, or a TiffFrame that shares its tags with the first
        block = _read_page(page, [(each.start, each.stop) for each in where[len(lead) :]])
        return block.reshape([each.stop - each.start for each in where])

    def name(index: tuple[int, ...]) -> str:
        number = int(np.ravel_multi_index(index[: len(lead)], lead)) if lead else 0
        return f"{path}: page {number}, from row {index[len(lead)] * sides[0]}"

    return Chunked(series.shape, series.dtype, chunks, read, name)


def _plain(page: tifffile.TiffPage) -> bool:
    """Whether a page has one sample in two dimensions, as usual, so that single segments can be read."""
    return (
        page.samplesperpixel == 1
        and page.imagedepth == 1
        and page.shape == (page.imagelength, page.imagewidth)
    )


def _sides(page: tifffile.TiffPage) -> tuple[int, ...]:
    if not _plain(page):
        return page.shape
    if page.is_tiled:
        return page.tilelength, page.tilewidth
    strip = page.rowsperstrip * page.imagewidth * np.dtype(page.dtype).itemsize
    rows = page.rowsperstrip * max(1, LEAST_BYTES // strip)
    return min(rows, page.imagelength), page.imagewidth


def _read_page(page: Any, bounds: list[tuple[int, int]]) -> np.ndarray:
    keyframe = page.keyframe
    if not _plain(keyframe):
        return _whole(page)
    (top, bottom), (left, right) = bounds
    height, width = (keyframe.tilelength, keyframe.tilewidth) if keyframe.is_tiled else (
        keyframe.rowsperstrip, keyframe.imagewidth)  # fmt: skip
    across = -(-keyframe.imagewidth // width)
    options = {"jpegtables": page.jpegtables, "jpegheader": keyframe.jpegheader} if (
        keyframe.compression in _JPEG) else {}  # fmt: skip
    block = np.full((bottom - top, right - left), keyframe.nodata, keyframe.dtype)
    with open(page.parent.filehandle.path, "rb") as file:
        for row in range(top // height, -(-bottom // height)):
            number = row * across + left // width
            segment = _segment(file, page, number, options)
            if segment is not None:
                rows = slice(row * height - top, min(row * height + height, bottom) - top)
                block[rows] = segment[0, : rows.stop - rows.start, : right - left, 0]
    return block


def _segment(file: Any, page: Any, number: int, options: dict[str, Any]) -> np.ndarray | None:
    """A decoded segment (1, rows, columns, 1); None if the writer omitted it."""
    if not page.databytecounts[number]:
        return None
    file.seek(page.dataoffsets[number])
    return page.keyframe.decode(file.read(page.databytecounts[number]), number, **options)[0]


def _whole(page: Any) -> np.ndarray:
    """A whole page, read by tifffile, which has one position in its file, so in one thread at a time."""
    handle = page.parent.filehandle
    with handle.lock:
        handle.open()
        try:
            return page.asarray()
        finally:
            handle.close()
