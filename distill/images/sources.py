"""Makes a Stack from images of any source: paths, globs and folders of many formats, arrays, tensors."""

import fnmatch
import glob
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distill.errors import UserError
from distill.files import check_readable
from distill.images import formats, tiff, zarr
from distill.images.chunks import Chunked, span
from distill.images.joined import closed, join, with_axes
from distill.images.stack import Stack, checked

ImagePath = str | os.PathLike[str]
Images = (
    ImagePath | np.ndarray | Tensor | Stack | Sequence[ImagePath] | Any
)  # or a Dask array, known by its methods

ENDINGS = (".tif", ".tiff", ".zarr", ".npy", *formats.READERS)  # files of a folder that are read


def as_stack(images: Images, axes: str | None = None) -> Stack:
    """Makes a Stack from anything that `read` takes, a NumPy or Dask array, a tensor or a Stack.

    Arrays are YX, TYX or TCYX by default.
    """
    if isinstance(images, Stack):
        return checked(with_axes(images, axes) if axes else replace(images))
    if isinstance(images, str | os.PathLike):
        return read(images, axes)
    if isinstance(images, list | tuple) and all(isinstance(each, str | os.PathLike) for each in images):
        return read(images, axes)
    if hasattr(images, "__dask_graph__"):
        return checked(Stack(_of_dask(images), axes.upper() if axes else _guess(images)))
    if isinstance(images, Tensor):
        images = images.detach().cpu()
        images = (images.float() if images.dtype == torch.bfloat16 else images).numpy()
    pixels = images if isinstance(images, np.ndarray) else np.asarray(images)
    return checked(Stack(pixels, axes.upper() if axes else _guess(pixels)))


def read(images: ImagePath | Sequence[ImagePath], axes: str | None = None) -> Stack:
    """Opens images as a Stack, whose pixels are read when they are indexed.

    Several files are joined to one stack along a new T, or along S if they have a T already. They must have
    the same shape, axes and type. Raises UserError if they do not, or if an image cannot be read.

    Args:
        images: a file, an OME-Zarr image (also its URL), a folder or a glob of files, or a list of them. The
            formats are TIFF, OME-TIFF, OME-Zarr, Zarr arrays, .npy, ND2, CZI and LIF. Files of a folder or a
            glob are in the order of their names, with numbers in numerical order.
        axes: letters of the dimensions of each file, of STCZYX. Default: those of the file's metadata.
    """
    paths = [images] if isinstance(images, str | os.PathLike) else list(images)
    files = [path for each in paths for path in _files(os.fspath(each))]
    if not files:
        raise UserError("images: got an empty list; pass at least one path")
    if len(files) == 1:
        return _read_file(files[0], axes)
    stacks = []
    for file in files:
        stack = _read_file(file, axes)
        stacks.append(replace(stack, pixels=closed(stack.pixels)))
    name = ", ".join(os.fspath(each) for each in paths[:2]) + ", ..." * (len(paths) > 2)
    return join(stacks, name)


def _files(path: str) -> list[str]:
    """The files that a path stands for: itself, the files of a folder, or those of a glob."""
    if "://" in path or os.path.exists(path) or not glob.has_magic(path):
        is_folder = os.path.isdir(path) and not zarr.is_zarr(path)
        return _in_folder(path) if is_folder else [path]
    if not (matches := glob.glob(path, recursive=True)):
        raise UserError(f"{path}: no file matches; pass a glob of files that exist, within quotation marks")
    return sorted(matches, key=_in_order)


def check_apart(images: Images, out: str | os.PathLike[str]) -> None:
    """UserError if an output is one of the images, or would be taken for one when they are read again."""
    each_of = images if isinstance(images, list | tuple) else [images]
    for path in [os.fspath(each) for each in each_of if isinstance(each, str | os.PathLike)]:
        if "://" in path:
            continue
        target, source = os.path.realpath(out), os.path.realpath(path)
        if target == source:
            raise UserError(f"{out}: is the noisy image itself; pass another path as out")
        inside = os.path.dirname(target) == source and target.lower().endswith(ENDINGS)
        is_folder = os.path.isdir(path) and not zarr.is_zarr(path)
        matches = not os.path.exists(path) and glob.has_magic(path) and _matches(target, source)
        if (inside and is_folder) or matches:
            raise UserError(
                f"{out}: would be taken for one of the images {path} next time; pass a path in another folder"
            )


def _matches(path: str, pattern: str) -> bool:
    """Whether a glob finds a path. Both are absolute."""
    same_folder = "**" in pattern or os.path.dirname(path) == os.path.dirname(pattern)
    return same_folder and fnmatch.fnmatch(path, pattern)


def _in_folder(path: str) -> list[str]:
    names = [name for name in os.listdir(path) if name.lower().endswith(ENDINGS) and not name.startswith(".")]
    if not names:
        raise UserError(
            f"{path}: is a folder without images ({', '.join(ENDINGS)}); pass files or another folder"
        )
    return [os.path.join(path, name) for name in sorted(names, key=_in_order)]


def holds_images(folder: str) -> bool:
    return zarr.is_zarr(folder) or any(name.lower().endswith(ENDINGS) for name in os.listdir(folder))


def _in_order(name: str) -> list[tuple[int, str]]:
    """Sorting key that puts frame_9 before frame_10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _read_file(path: str, axes: str | None) -> Stack:
    ending = Path(path).suffix.lower()
    if "://" in path or zarr.is_zarr(path):
        return zarr.read(path, axes)
    if ending == ".npy":
        return _read_npy(path, axes)
    if ending in formats.READERS:
        return formats.read(path, axes)
    return tiff.read(path, axes)


def _read_npy(path: str, axes: str | None) -> Stack:
    check_readable(path, "pass the path of an array that numpy.save wrote")
    try:
        pixels = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError, SyntaxError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: cannot be read ({reason}); pass an array that numpy.save wrote") from error
    return checked(Stack(pixels, axes.upper() if axes else _guess(pixels), Path(path).name))


def _of_dask(array: Any) -> Chunked:
    chunks = tuple(max(each) for each in array.chunks)

    def read_chunk(index: tuple[int, ...]) -> np.ndarray:
        return np.asarray(array[span(index, array.shape, chunks)].compute())

    return Chunked(array.shape, array.dtype, chunks, read_chunk, lambda index: f"array: chunk {index}")


def _guess(pixels: Any) -> str:
    return {2: "YX", 3: "TYX", 4: "TCYX"}.get(pixels.ndim, "")


def check_channels(stack: Stack, name: str, trained_on: int | None) -> None:
    """UserError if the number of channels differs from that which `name` was trained on, if it is known."""
    channels = stack.frames.shape[1]
    if trained_on not in (None, channels):
        raise UserError(
            f"{stack.name}: has {channels} channels, but {name} was trained on {trained_on}; pass images "
            "like those that it was trained on, or --axes if these are not channels"
        )
