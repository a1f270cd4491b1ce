"""Writes OME-Zarr block by block: version 0.5 in Zarr v3, or version 0.4 in Zarr v2.

Metadata are made and checked by yaozarrs, which has pydantic models of both versions and no further
dependencies (ome-zarr-models would need pydantic-zarr, ome-zarr would need Dask and scikit-image).
"""

import math
import os
import shutil
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from distill.errors import UserError
from distill.files import check_folder
from distill.images.frames_in import converted, place, sizes, written_dtype
from distill.images.stack import Stack
from distill.images.zarr_metadata import attributes

ENDINGS = (".zarr",)
CHUNK = 512  # side in px if neither the input nor the user gives one
SMALLEST = 256  # px; a pyramid ends at a level with sides of at most this


class ZarrTarget:
    """Writes frames (N, C', Y, X) as one multiscale image with those of the axes TCZYX that `like` has.

    Chunks are compressed without loss (Zstandard, by Blosc).

    Args:
        chunks: side of the chunks along Y and X in pixels. Default: the chunks of `like`, also along the last
            of S, T, Z; without chunks 512.
        shards: side of the shards in pixels, a multiple of that of the chunks. Default: no shards.
        pyramid: whether to add levels of half the size each, as means of 2 x 2 pixels, until the image has at
            most 256 pixels a side.
    """

    def __init__(
        self,
        path: Path,
        like: Stack,
        channels: int,
        dtype: str = "float32",
        chunks: int | None = None,
        shards: int | None = None,
        pyramid: bool = False,
    ) -> None:
        self.kind = dtype
        self.path, self.like, self.dtype = path, like, written_dtype(dtype, like)
        self.part = path.with_name(f".{path.name}.part")
        self.zarr = _imported()
        self.version = like.ome_zarr or "0.5"
        self.axes = "".join(a for a in "TCZYX" if a in like.restored_axes(channels))
        if "S" in like.axes:
            raise UserError(
                f"{path}: OME-Zarr stores no positions (axis S of {like.axes}); pass a .tif, or other --axes"
            )
        self.shape = sizes(like, self.axes, channels)
        self.chunks = _chunks(like, self.axes, self.shape, chunks)
        self.shards = self._checked_shards(shards)
        halvings = math.ceil(math.log2(max(self.shape[-2:]) / SMALLEST)) if pyramid else 0
        self.levels = 1 + max(0, halvings)
        self.bytes = math.prod(self.shape) * self.dtype.itemsize * (4 / 3 if pyramid else 1)
        # Size of a block that fills whole chunks, and whole pixels of all levels.
        lead = [a for a in like.axes if a in "TZ"]
        depth = self.chunks[self.axes.index(lead[-1])] if lead else 1
        height, width = (math.lcm(n, 2 ** (self.levels - 1)) for n in (self.shards or self.chunks)[-2:])
        self.grain = (depth, height, width)

    def check(self, overwrite: bool) -> None:
        """UserError if the image cannot be written. Call it before the work."""
        if not self.path.name.lower().endswith(ENDINGS):
            raise UserError(f"{self.path}: pass a name that ends in .ome.zarr or .zarr")
        there = os.path.lexists(self.path)
        if there and not (overwrite and _is_zarr(self.path)):
            raise UserError(f"{self.path}: exists already; pass another path, or overwrite for a Zarr folder")
        check_folder(self.path.parent, self.bytes)

    def create(self) -> None:
        """Creates the part, without pixels, in place of any earlier one."""
        self.discard()
        zarr_format = 2 if self.version == "0.4" else 3
        about = attributes(self.like, self.axes, self.shape, self.levels, self.version, self.path.name)
        group = self.zarr.create_group(self.part, zarr_format=zarr_format, attributes=about)
        for level in range(self.levels):
            shape = [*self.shape[:-2], *(-(-n // 2**level) for n in self.shape[-2:])]
            group.create_array(str(level), shape=tuple(shape), dtype=self.dtype, **self._options(zarr_format))

    def is_there(self) -> bool:
        return _is_zarr(self.part)

    def write(self, first: int, y0: int, x0: int, block: np.ndarray) -> None:
        """Writes a block of frames (F, C', h, w) from frame `first` on, at row y0 and column x0."""
        group = self.zarr.open_group(self.part, mode="r+")
        for level in range(self.levels):
            block = converted(block, self.dtype)
            for start, stop in self._runs(first, len(block)):
                self._write_run(group[str(level)], start, y0, x0, block[start - first : stop - first])
            y0, x0, block = y0 // 2, x0 // 2, _halved(block) if level + 1 < self.levels else block

    def sync(self) -> None:
        """Does nothing: chunks are whole files, which the system writes to the disk within half a minute."""

    def finish(self) -> None:
        """Renames the complete part to the final name, and deletes what had that name before."""
        for torn in self.part.rglob("*.partial"):  # left by a process that was killed while it wrote
            torn.unlink()
        former = self.path.with_name(f".{self.path.name}.former.part")
        if self.path.exists():
            os.replace(self.path, former)
        os.replace(self.part, self.path)
        shutil.rmtree(former, ignore_errors=True)

    def opened(self) -> Any:
        """The pixels of the finished image."""
        return self.zarr.open_array(self.path / "0", mode="r")

    def discard(self) -> None:
        shutil.rmtree(self.part, ignore_errors=True)

    def _runs(self, first: int, count: int) -> list[tuple[int, int]]:
        """(first frame, number) of each run of frames that are consecutive along one axis."""
        lead = [a for a in self.like.axes if a in "TZ"]
        length = sizes(self.like, lead[-1], 1)[0] if lead else 1
        cuts = [first, *(i for i in range(first + 1, first + count) if i % length == 0), first + count]
        return list(pairwise(cuts))

    def _write_run(self, array: Any, first: int, y0: int, x0: int, block: np.ndarray) -> None:
        lead = [a for a in self.like.axes if a in "TZ"]
        where = {a: slice(i, i + 1) for a, i in place(self.like, first).items()}
        if lead:
            where[lead[-1]] = slice(where[lead[-1]].start, where[lead[-1]].start + len(block))
        height, width = block.shape[-2:]
        where |= {"C": slice(None), "Y": slice(y0, y0 + height), "X": slice(x0, x0 + width)}
        inner = [a for a in "CYX" if a in self.axes]
        have = [*lead, *inner]
        shape = [*[1] * (len(lead) - 1), *([len(block)] if lead else []), *block.shape[4 - len(inner) :]]
        ordered = block.reshape(shape).transpose([have.index(a) for a in self.axes])
        array[tuple(where[a] for a in self.axes)] = ordered

    def _checked_shards(self, side: int | None) -> list[int] | None:
        if side is None:
            return None
        if self.version == "0.4":
            raise UserError(
                f"{self.path}: OME-Zarr 0.4, the version of the input, has no shards; leave them out"
            )
        if any(side % chunk for chunk in self.chunks[-2:]):
            raise UserError(
                f"shards: got {side}, must be a multiple of the chunks' sides {tuple(self.chunks[-2:])}"
            )
        return [*self.chunks[:-2], side, side]

    def _options(self, zarr_format: int) -> dict[str, Any]:
        options: dict[str, Any] = {"chunks": tuple(self.chunks), "fill_value": 0}
        if zarr_format == 2:
            from numcodecs import Blosc

            keys = {"name": "v2", "separator": "/"}
            return options | {"compressors": Blosc("zstd", 3, Blosc.SHUFFLE), "chunk_key_encoding": keys}
        blosc = self.zarr.codecs.BloscCodec(cname="zstd", clevel=3, shuffle="shuffle")
        names = [a.lower() for a in self.axes]
        return options | {
            "compressors": blosc,
            "shards": self.shards and tuple(self.shards),
            "dimension_names": names,
        }


def _chunks(like: Stack, axes: str, shape: list[int], side: int | None) -> list[int]:
    """Size of the chunks along each axis.

    The chunks of the input are used if one block can fill them: along the last axis of the frames' index, and
    within frames.
    """
    chunks = getattr(like.pixels, "chunks", None)
    sides = dict(zip(like.axes, chunks, strict=True)) if chunks else {}
    lead = [a for a in like.axes if a in "TZ"]
    chunk = {a: sides.get(a, 1) for a in lead[-1:]} | {a: sides.get(a, CHUNK) for a in "YX"}
    chunk |= {"C": sides.get("C", 1)} | (dict(Y=side, X=side) if side else {})
    return [min(chunk.get(a, 1), n) if a not in "YX" else chunk[a] for a, n in zip(axes, shape, strict=True)]


def _halved(block: np.ndarray) -> np.ndarray:
    """Means of 2 x 2 pixels of a block (F, C, h, w); of fewer at odd ends."""
    odd = [(0, n % 2) for n in block.shape[-2:]]
    padded = np.pad(block.astype(np.float32), [(0, 0), (0, 0), *odd], mode="edge")
    return (
        padded[..., ::2, ::2] + padded[..., 1::2, ::2] + padded[..., ::2, 1::2] + padded[..., 1::2, 1::2]
    ) / 4


def _is_zarr(path: Path) -> bool:
    return any((path / name).is_file() for name in ("zarr.json", ".zgroup", ".zarray"))


def _imported() -> ModuleType:
    try:
        import yaozarrs  # noqa: F401
        import zarr
        import zarr.codecs
    except ImportError:
        raise UserError(
            "OME-Zarr needs packages that are not installed; run: pip install 'posterior-distill[zarr]'"
        ) from None
    return zarr
