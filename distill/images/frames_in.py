"""Where frames lie in a written array, and in which type."""

import numpy as np

from distill.errors import UserError
from distill.images.stack import Stack


def check_dtype(path: object, dtype: str) -> None:
    if dtype not in ("float32", "input"):
        raise UserError(f"{path}: dtype {dtype!r} is not known; pass 'float32' or 'input'")


def written_dtype(dtype: str, like: Stack) -> np.dtype:
    """dtype: "float32", or "input" for that of `like`, in this machine's byte order."""
    return np.dtype("f4") if dtype == "float32" else np.dtype(like.pixels.dtype).newbyteorder("=")


def converted(block: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Rounded and clipped for an integer type."""
    if dtype.kind in "ui" and block.dtype != dtype:
        info = np.iinfo(dtype)
        high = float(info.max)
        high = np.nextafter(high, 0) if high > info.max else high  # 2**63 - 1 is no float64
        block = np.clip(np.rint(block.astype(np.float64)), info.min, high)
    elif dtype.kind == "b":
        block = block >= 0.5
    return np.ascontiguousarray(block, dtype=dtype)


def sizes(like: Stack, axes: str, channels: int) -> list[int]:
    """Of an array of these axes."""
    size = dict(zip(like.axes, like.pixels.shape, strict=True)) | {"C": channels}
    return [size[a] for a in axes]


def place(like: Stack, frame: int) -> dict[str, int]:
    """Its index on each of the axes S, T, Z that there are."""
    lead = "".join(a for a in like.axes if a in "STZ")
    index = np.unravel_index(frame, sizes(like, lead, 1)) if lead else ()
    return dict(zip(lead, map(int, index), strict=True))


def frame_view(array: np.ndarray, like: Stack, axes: str, frame: int) -> np.ndarray:
    """Frame (C, Y, X) of an array of these axes: a view."""
    at = place(like, frame)
    view = array[tuple(at[a] if a in at else slice(None) for a in axes)]
    left = [a for a in axes if a in "CYX"]
    view = view.transpose([left.index(a) for a in "CYX" if a in left])
    return view if "C" in left else view[None]
