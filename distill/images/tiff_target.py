"""TIFF, OME-TIFF and ImageJ hyperstacks, written block by block through tifffile."""

import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_OID, uuid5

import numpy as np
import tifffile

from distill.errors import UserError
from distill.files import check_file, move_into_place, reserve, sync, whole_file
from distill.images.frames_in import check_dtype, converted, frame_view, place, sizes, written_dtype
from distill.images.stack import Stack
from distill.images.tiff import read

ENDINGS = (".tif", ".tiff")
BIG_BYTES = 3.9e9  # larger files are BigTIFF
_NOT_OME = ("int64", "uint64", "float16")


class TiffTarget:
    """Frames (N, C', Y, X) in the axis order and with the pixel size of `like`.

    .ome.tif gives OME-TIFF (S moves first, Y and X last; OME keeps no axes of size 1). Any other
    .tif is an ImageJ hyperstack where ImageJ can hold it unchanged (TZCYX order, no axes of size 1,
    uint8, uint16 or float32, < 3.9 GB), else tifffile's own layout with axes in its metadata.

    Pixels are written to their place in the final file. Compressed planes have no place before the last
    of them is known: those wait uncompressed in the part, and are compressed when it is finished.
    """

    grain = (1, 1, 1)  # any block may be written by itself

    def __init__(self, path: Path, like: Stack, channels: int, dtype: str = "float32") -> None:
        self.kind = dtype
        self.path, self.like, self.dtype = path, like, written_dtype(dtype, like)
        self.part = path.with_name(f".{path.name}.part")
        self.ome = path.name.lower().endswith((".ome.tif", ".ome.tiff"))
        if self.ome and self.dtype.name in _NOT_OME:
            raise UserError(f"{path}: OME-TIFF cannot hold {self.dtype}; pass a .tif name, or float32")
        self.axes = like.restored_axes(channels)
        if self.ome:
            self.axes = "S" * ("S" in self.axes) + "".join(a for a in self.axes if a not in "SYX") + "YX"
        self.shape = sizes(like, self.axes, channels)
        self.bytes = prod(self.shape) * self.dtype.itemsize
        thin = self.shape[-1] == 1  # an X of 1 px, which tifffile leaves out
        packed = self.dtype.kind == "b"  # 8 pixels in a byte
        self.in_place = not (thin or packed or like.compression)

    def check(self, overwrite: bool) -> None:
        """To be called before the work; see `check_file`."""
        check_file(self.path, ENDINGS, overwrite, self.bytes * (1 if self.in_place else 2))

    def create(self) -> None:
        """The part, with room for every pixel, in place of any other."""
        if self.in_place:
            self._write_tiff(self.part, [None] * self._positions)
        else:
            with open(self.part, "wb") as file:
                file.truncate(self.bytes)
        reserve(self.part)

    def is_there(self) -> bool:
        return self.part.is_file() and self.part.stat().st_size >= self.bytes

    def write(self, first: int, y0: int, x0: int, block: np.ndarray) -> None:
        """Frames (F, C', h, w) from frame `first` on, at row y0 and column x0.

        The map is opened for each block: what stays mapped would count as memory of the process.
        """
        images = [np.memmap(self.part, self.dtype, "r+", start, self._image) for start in self._offsets]
        height, width = block.shape[-2:]
        for i, frame in enumerate(converted(block, self.dtype), start=first):
            image = images[place(self.like, i)["S"] if self._positions > 1 else 0]
            view = frame_view(image, self.like, self._image_axes, i)
            view[:, y0 : y0 + height, x0 : x0 + width] = frame

    def sync(self) -> None:
        """What is written lies on the disk, for a power failure too."""
        if self.part.exists():
            sync(self.part)

    def finish(self) -> None:
        """The part, complete, takes the file's name."""
        if self.in_place:
            move_into_place(self.part, self.path)
            return
        images = [np.memmap(self.part, self.dtype, "r", start, self._image) for start in self._offsets]
        with whole_file(self.path) as path:
            self._write_tiff(path, images)
        self.part.unlink()

    def opened(self) -> Any:
        """The finished image's pixels."""
        return read(self.path).pixels

    def discard(self) -> None:
        self.part.unlink(missing_ok=True)

    @property
    def _positions(self) -> int:
        """OME-TIFF keeps each position as an image of its own."""
        return self.shape[0] if self.ome and "S" in self.axes else 1

    @property
    def _image_axes(self) -> str:
        return self.axes.replace("S", "") if self.ome else self.axes

    @property
    def _image(self) -> tuple[int, ...]:
        """The shape of one."""
        return tuple(self.shape[-len(self._image_axes) :])

    @cached_property
    def _offsets(self) -> list[int]:
        """Where in the part the pixels of each image begin."""
        if not self.in_place:
            return [i * self.bytes // self._positions for i in range(self._positions)]
        with tifffile.TiffFile(self.part) as tif:
            pages = len(tif.pages) // self._positions
            return [tif.pages[i * pages].dataoffsets[0] for i in range(self._positions)]

    def _write_tiff(self, path: Path, images: Sequence[np.ndarray | None]) -> None:
        """None for an image whose pixels are to come."""
        like, thin, big = self.like, self._image[-1] == 1, self.bytes > BIG_BYTES
        unit = "um" if like.unit == "µm" and not self.ome else like.unit
        kind = "ome" if self.ome else "imagej" if self._fits_imagej(unit) else "plain"
        options: dict[str, Any] = {"photometric": "minisblack", "compression": like.compression}
        sides = [side for side in map(like.pixel_size.get, "xy") if side]  # one of them stands for both
        if sides and not self.ome:
            options["resolution"] = (1 / sides[0], 1 / sides[-1])
        meta = self._metadata(kind, unit)
        if self.ome:  # else tifffile's depends on the clock, and no two files would be equal
            meta["UUID"] = f"urn:uuid:{uuid5(NAMESPACE_OID, repr((self.path.name, like.name, meta)))}"
        with tifffile.TiffWriter(path, bigtiff=big, ome=self.ome, imagej=kind == "imagej") as tif:
            for image in images:
                planes = None if image is None else image if thin else _planes(image)
                tif.write(planes, shape=self._image, dtype=self.dtype, metadata=meta, **options)

    def _fits_imagej(self, unit: str) -> bool:
        known = unit.isascii() and self.dtype.name in ("uint8", "uint16", "float32")
        ordered = list(self.axes) == [a for a in "TZCYX" if a in self.axes] and 1 not in self.shape[:-2]
        return known and ordered and self.shape[-1] > 1 and self.bytes <= BIG_BYTES

    def _metadata(self, kind: str, unit: str) -> dict[str, Any]:
        like = self.like
        meta = dict(like.extra) if like.source == kind else {}
        if self.ome:
            for axis, size in like.pixel_size.items():
                key = f"PhysicalSize{axis.upper()}"
                meta |= {key: size, f"{key}Unit": {"inch": "in", "": "pixel"}.get(unit, unit)}
            channels = self._image[self._image_axes.index("C")] if "C" in self._image_axes else 1
            named = like.extra.get("Channel", {})
            if len(named.get("Name", [])) == channels:
                meta["Channel"] = named
            else:
                meta.pop("Channel", None)
        else:
            meta |= {k: v for k, v in {"unit": unit, "spacing": like.pixel_size.get("z")}.items() if v}
        return meta | {"axes": self._image_axes}


def _planes(image: np.ndarray) -> Iterator[np.ndarray]:
    """The last two dimensions at a time: tifffile would compress from a copy of the whole."""
    for index in np.ndindex(image.shape[:-2]):
        yield np.asarray(image[index])


def write(
    path: str | os.PathLike, frames, like: Stack, dtype: str = "float32", overwrite: bool = False
) -> None:
    """Writes frames (N, C', Y, X), all at once: see TiffTarget.

    dtype: "float32", or "input" for that of `like` (rounded and clipped where it is an integer).
    The file appears under its name only when it is complete.
    """
    check_dtype(path, dtype)
    frames = frames.detach().cpu().numpy() if hasattr(frames, "detach") else frames
    like.check_frames(frames.shape)
    target = TiffTarget(Path(path), like, frames.shape[1], dtype)
    target.check(overwrite)
    try:
        target.create()
        for i in range(len(frames)):  # frame by frame: they may be larger than memory
            target.write(i, 0, 0, np.asarray(frames[i])[None])
        target.finish()
    finally:
        target.discard()
