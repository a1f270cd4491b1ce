"""The position of frames in a written array, and its type."""

import numpy as np

from distill.errors import UserError
from distill.images.stack import Stack


def check_dtype(path: object, dtype: str) -> None:
    if dtype not in ("float32", "input"):
        raise UserError(f"{path}: dtype {dtype!r} is not known; pass 'float32' or 'input'")


def written_dtype(dtype: str, like: Stack) -> np.dtype:
    """The type to write: float32, or for "input" that of `like`, in the byte order of this machine."""
    return np.dtype("f4") if dtype == "float32" else np.dtype(like.pixels.dtype).newbyteorder("=")


def converted(block: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The block in another type; rounded and clipped for an integer type."""
    if dtype.kind in "ui" and block.dtype != dtype:
        info = np.iinfo(dtype)
        high = float(info.max)
        high = np.nextafter(high, 0) if high > info.max else high  # float64 has no 2**63 - 1
        block = np.clip(np.rint(block.astype(np.float64)), info.min, high)
    elif dtype.kind == "b":
        block = block >= 0.5
    return np.ascontiguousarray(block, dtype=dtype)


def sizes(like: Stack, axes: str, channels: int) -> list[int]:
    """Sizes of an array with these axes and that many channels."""
    size = dict(zip(like.axes, like.pixels.shape, strict=True)) | {"C": channels}
    return [size[a] for a in axes]


def place(like: Stack, frame: int) -> dict[str, int]:
    """The index of a frame along each of the axes S, T, Z of the stack."""
    lead = "".join(a for a in like.axes if a in "STZ")
    index = np.unravel_index(frame, sizes(like, lead, 1)) if lead else ()
    return dict(zip(lead, map(int, index), strict=True))


def frame_view(array: np.ndarray, like: Stack, axes: str, frame: int) -> np.ndarray:
    """A view of one frame (C, Y, X) of an array with these axes."""
    at = place(like, frame)
    view = array[tuple(at[a] if a in at else slice(None) for a in axes)]
    left = [a for a in axes if a in "CYX"]
    view = view.transpose([left.index(a) for a in "CYX" if a in left])
    return view if "C" in left else view[None]
