"""File formats of microscope vendors, read frame by frame with a package for each format."""

import logging
import threading
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from distill.errors import UserError, out_of_memory
from distill.extras import extra
from distill.files import check_readable
from distill.images.chunks import Chunked
from distill.images.stack import LETTERS, Stack, checked

log = logging.getLogger(__name__)
Index = dict[str, int]  # index of a frame along each axis that is not in the frame itself


def read(path: str, axes: str | None = None) -> Stack:
    """Opens an ND2, CZI or LIF file without reading pixels; of several images in a LIF file, the first."""
    check_readable(path, "pass the path of one file")
    try:
        stack = READERS[Path(path).suffix.lower()](path)
    except Exception as error:  # a damaged file may raise any error
        if isinstance(error, UserError) or out_of_memory(error):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        advice = "pass an intact file, or convert it to TIFF"
        raise UserError(f"{path}: cannot be read ({reason}); {advice}") from error
    if axes:
        stack.axes = axes.upper()
    return checked(stack)


def _nd2(path: str) -> Stack:
    file = extra("nd2", "formats", path).ND2File(path)
    sizes = {"rgb" if axis == "S" else "S" if axis == "P" else axis: n for axis, n in file.sizes.items()}
    lead = [n for axis, n in sizes.items() if axis not in ("C", "Y", "X", "rgb")]

    def frame(at: Index) -> np.ndarray:
        return file.read_frame(int(np.ravel_multi_index(tuple(at.values()), lead)) if lead else 0)

    stack = _by_frames(path, sizes, ("C", "Y", "X"), file.dtype, frame)
    stack.pixel_size, stack.unit = {a: s for a, s in file.voxel_size()._asdict().items() if s}, "µm"
    if names := [each.channel.name for each in getattr(file.metadata, "channels", None) or []]:
        stack.extra, stack.source = {"Channel": {"Name": names}}, "ome"
    return stack


def _czi(path: str) -> Stack:
    file = extra("czifile", "formats", path).CziFile(path)
    sizes = {"rgb" if a == "0" else a: n for a, n in zip(file.axes, file.shape, strict=True)}
    origin = dict(zip(file.axes, file.start, strict=True))
    tiles = defaultdict(list)  # of each frame, found once, because a file may have 100 000 of them
    for tile in file.filtered_subblock_directory:
        if tile.stored_shape == tile.shape:  # otherwise it belongs to a smaller copy of the image
            low = {a: n - origin.get(a, 0) for a, n in zip(tile.axes, tile.start, strict=True)}
            tiles[tuple(low.get(a, 0) for a in sizes if a not in "YX")].append((tile, low["Y"], low["X"]))

    def frame(at: Index) -> np.ndarray:
        """One frame; the tiles of a mosaic are put together."""
        plane = np.zeros((sizes["Y"], sizes["X"]), file.dtype)
        for tile, y, x in tiles.get(tuple(at.values()), ()):
            shape = dict(zip(tile.axes, tile.shape, strict=True))
            pixels = tile.data_segment().data(resize=False).reshape(shape["Y"], shape["X"])
            plane[y : y + shape["Y"], x : x + shape["X"]] = pixels
        return plane

    stack = _by_frames(path, sizes, ("Y", "X"), file.dtype, frame)
    scaling = file.metadata(raw=False)["ImageDocument"]["Metadata"].get("Scaling") or {}
    distances = scaling.get("Items", {}).get("Distance", [])
    distances = distances if isinstance(distances, list) else [distances]
    meters = {each["Id"].lower(): each["Value"] for each in distances}
    stack.pixel_size, stack.unit = {a: 1e6 * float(s) for a, s in meters.items() if a in "xyz" and s}, "µm"
    return stack


def _lif(path: str) -> Stack:
    file = extra("liffile", "formats", path).LifFile(path)
    image = file.images[0]
    if len(file.images) > 1:
        log.warning(f"{path}: contains {len(file.images)} images; the first is read, {image.name}")
    sizes = {"rgb" if axis == "S" else "S" if axis == "M" else axis: n for axis, n in image.sizes.items()}

    def frame(at: Index) -> np.ndarray:
        return image.frames[tuple(at.values())]

    stack = _by_frames(path, sizes, image.frames.frame_dims, image.dtype, frame)
    ends = {a: c for a in "XYZ" if len(c := image.coords.get(a, ())) > 1}
    stack.pixel_size = {a.lower(): 1e6 * abs(float(c[1] - c[0])) for a, c in ends.items()}
    stack.unit = "µm"
    return stack


def _by_frames(
    path: str,
    sizes: dict[str, int],
    inside: tuple[str, ...],
    dtype: Any,
    frame: Callable[[Index], np.ndarray],
) -> Stack:
    """A Stack that reads frame by frame.

    sizes: sizes of all axes, in their order. inside: axes within a frame. Unknown axes of size 1 are dropped.
    """

    if sizes.get("rgb", 1) > 1:
        raise UserError(f"{path}: RGB image, one channel expected; convert it to grey")
    axis_sizes = {axis: n for axis, n in sizes.items() if axis in LETTERS or n > 1}
    chunks = tuple(n if axis in inside else 1 for axis, n in axis_sizes.items())
    lock = threading.Lock()  # these packages have one position in their file

    def read_chunk(index: tuple[int, ...]) -> np.ndarray:
        at = dict.fromkeys(sizes, 0) | dict(zip(axis_sizes, index, strict=True))
        with lock:
            pixels = frame({axis: i for axis, i in at.items() if axis not in inside and axis in sizes})
        return pixels.reshape(chunks).copy()

    def where(index: tuple[int, ...]) -> str:
        return f"{path}: frame {dict(zip(axis_sizes, index, strict=True))}"

    pixels = Chunked(tuple(axis_sizes.values()), dtype, chunks, read_chunk, where)
    return Stack(pixels, "".join(axis_sizes), Path(path).name)


READERS: dict[str, Callable[[str], Stack]] = {".nd2": _nd2, ".czi": _czi, ".lif": _lif}
