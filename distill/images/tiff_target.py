"""Writes TIFF, OME-TIFF and ImageJ hyperstacks block by block through tifffile."""

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
BIG_BYTES = 3.9e9  # larger files become BigTIFF
_NOT_OME = ("int64", "uint64", "float16")


class TiffTarget:
    """Writes frames (N, C', Y, X) in the axis order and with the pixel size of `like`.

    A name in .ome.tif gives OME-TIFF (S moves first, Y and X last; OME stores no axes of size 1). Any other
    .tif is an ImageJ hyperstack if ImageJ can store it unchanged (TZCYX order, no axes of size 1, uint8,
    uint16 or float32, < 3.9 GB), otherwise it has tifffile's own layout with the axes in its metadata.

    Pixels are written to their position in the final file. The positions of compressed planes are not known
    before all of them are compressed, so these planes stay uncompressed in the part until it is finished.
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
        thin = self.shape[-1] == 1  # tifffile omits an X of 1 px
        packed = self.dtype.kind == "b"  # 8 pixels in a byte
        self.in_place = not (thin or packed or like.compression)

    def check(self, overwrite: bool) -> None:
        """UserError if the file cannot be written, see `check_file`. Call it before the work."""
        check_file(self.path, ENDINGS, overwrite, self.bytes * (1 if self.in_place else 2))

    def create(self) -> None:
        """Creates the part, with space for every pixel, in place of any earlier one."""
        if self.in_place:
            self._write_tiff(self.part, [None] * self._positions)
        else:
            with open(self.part, "wb") as file:
                file.truncate(self.bytes)
        reserve(self.part)

    def is_there(self) -> bool:
        return self.part.is_file() and self.part.stat().st_size >= self.bytes

    def write(self, first: int, y0: int, x0: int, block: np.ndarray) -> None:
        """Writes a block of frames (F, C', h, w) from frame `first` on, at row y0 and column x0.

        The memory map is opened for each block, because mapped pages count as memory of the process.
        """
        images = [np.memmap(self.part, self.dtype, "r+", start, self._image) for start in self._offsets]
        height, width = block.shape[-2:]
        for i, frame in enumerate(converted(block, self.dtype), start=first):
            image = images[place(self.like, i)["S"] if self._positions > 1 else 0]
            view = frame_view(image, self.like, self._image_axes, i)
            view[:, y0 : y0 + height, x0 : x0 + width] = frame

    def sync(self) -> None:
        """Waits until the written blocks are on the disk, safe from a power failure."""
        if self.part.exists():
            sync(self.part)

    def finish(self) -> None:
        """Renames the complete part to the final name."""
        if self.in_place:
            move_into_place(self.part, self.path)
            return
        images = [np.memmap(self.part, self.dtype, "r", start, self._image) for start in self._offsets]
        with whole_file(self.path) as path:
            self._write_tiff(path, images)
        self.part.unlink()

    def opened(self) -> Any:
        """The pixels of the finished image."""
        return read(self.path).pixels

    def discard(self) -> None:
        self.part.unlink(missing_ok=True)

    @property
    def _positions(self) -> int:
        """Number of positions, each of which is a separate image in OME-TIFF."""
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
        """Offset in the part at which the pixels of each image begin."""
        if not self.in_place:
            return [i * self.bytes // self._positions for i in range(self._positions)]
        with tifffile.TiffFile(self.part) as tif:
            pages = len(tif.pages) // self._positions
            return [tif.pages[i * pages].dataoffsets[0] for i in range(self._positions)]

    def _write_tiff(self, path: Path, images: Sequence[np.ndarray | None]) -> None:
        """Writes a TIFF file; None stands for an image whose pixels are written later."""
        like, thin, big = self.like, self._image[-1] == 1, self.bytes > BIG_BYTES
        unit = "um" if like.unit == "µm" and not self.ome else like.unit
        kind = "ome" if self.ome else "imagej" if self._fits_imagej(unit) else "plain"
        options: dict[str, Any] = {"photometric": "minisblack", "compression": like.compression}
        sides = [side for side in map(like.pixel_size.get, "xy") if side]  # one stands for both
        if sides and not self.ome:
            options["resolution"] = (1 / sides[0], 1 / sides[-1])
        meta = self._metadata(kind, unit)
        if self.ome:  # that of tifffile depends on the clock, so no two files would be equal
            meta["UUID"] = f"urn:uuid:{uuid5(NAMESPACE_OID, repr((self.path.name, like.name, meta)))}"
        with tifffile.TiffWriter(path, bigtiff=big, ome=self.ome, imagej=kind == "imagej") as tif:
            for image in images:
                planes = None if image is None else image if thin else _planes(image)
                tif.write(planes, shape=self._image, dtype=self.dtype, metadata=meta, **options)

    def _fits_imagej(self, unit: str) -> bool:
        supported = unit.isascii() and self.dtype.name in ("uint8", "uint16", "float32")
        ordered = list(self.axes) == [a for a in "TZCYX" if a in self.axes] and 1 not in self.shape[:-2]
        return supported and ordered and self.shape[-1] > 1 and self.bytes <= BIG_BYTES

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
    """The planes of an image one by one, because tifffile would compress from a copy of the whole."""
    for index in np.ndindex(image.shape[:-2]):
        yield np.asarray(image[index])


def write(
    path: str | os.PathLike, frames, like: Stack, dtype: str = "float32", overwrite: bool = False
) -> None:
    """Writes frames (N, C', Y, X) to a TIFF file, which appears only when it is complete; see TiffTarget.

    Args:
        path: file to be written, .tif, .tiff or .ome.tif.
        frames: frames (N, C', Y, X).
        like: stack whose axes, pixel size and metadata the file gets.
        dtype: "float32", or "input" for that of `like`, rounded and clipped if it is an integer type.
        overwrite: whether to replace an existing file. Default: no.
    """
    check_dtype(path, dtype)
    frames = frames.detach().cpu().numpy() if hasattr(frames, "detach") else frames
    like.check_frames(frames.shape)
    target = TiffTarget(Path(path), like, frames.shape[1], dtype)
    target.check(overwrite)
    try:
        target.create()
        for i in range(len(frames)):  # frame by frame, because they may not fit into memory
            target.write(i, 0, 0, np.asarray(frames[i])[None])
        target.finish()
    finally:
        target.discard()
