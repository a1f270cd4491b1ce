"""Noise models as .npz files without pickle, the format of PN2V-family tools."""

import os
import zipfile
from collections.abc import Sequence
from io import BytesIO
from os import PathLike
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

NoiseFile = str | PathLike | BytesIO
MOST_BYTES = 150_000_000  # a histogram of 4096 bins takes 134 million


def read(
    path: NoiseFile,
    needed: Sequence[str] = (),
    optional: Sequence[str] | None = None,
    most_bytes: int = MOST_BYTES,
) -> dict[str, np.ndarray]:
    """Reads all arrays of numbers or text from an .npz file.

    Raises a ValueError that names `path` if the file is of another kind or damaged, if it takes more memory
    than `most_bytes`, if it lacks a key of `needed`, or if it has other keys than those of `needed` and
    `optional`. optional: None allows any key.
    """
    if not isinstance(path, BytesIO) and not Path(path).is_file():
        raise ValueError(f"{path}: no such file; pass a noise model (.npz)")
    try:
        _check_archive(path, most_bytes)
        if isinstance(path, BytesIO):
            path.seek(0)
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file}
            if odd := [key for key, value in arrays.items() if value.dtype.kind not in "biufU"]:
                raise ValueError(f"{', '.join(odd)}: neither numbers nor text")
    except Exception as error:  # zipfile, zlib and numpy raise nearly every kind for damaged files
        reason = str(error) or type(error).__name__
        raise ValueError(f"{path}: not a readable noise-model .npz file ({reason})") from error
    missing = [key for key in needed if key not in arrays]
    unknown = [] if optional is None else [key for key in arrays if key not in (*needed, *optional)]
    if missing or unknown:
        but = f"but not {', '.join(missing)}" if missing else f"of which {', '.join(unknown)} does not belong"
        raise ValueError(
            f"{path}: holds {', '.join(arrays) or 'nothing'} {but}; pass a noise model of this kind (.npz)"
        )
    return arrays


def _check_archive(path: NoiseFile, most_bytes: int) -> None:
    """ValueError if the archive is too large or damaged.

    Sizes are checked before anything is decompressed; checksums, because numpy does not reach them in a
    damaged array; and the number of arrays, because zipfile skips those after a damaged directory entry.
    """
    with zipfile.ZipFile(path) as archive:
        file = cast(IO[bytes], archive.fp)
        file.seek(-len(archive.comment) - 12, os.SEEK_END)  # field of the record of 22 bytes at the end
        promised = int.from_bytes(file.read(2), "little")
        if promised != len(archive.infolist()):
            raise ValueError(f"{len(archive.infolist())} arrays are left of {promised}")
        size = sum(entry.file_size for entry in archive.infolist())
        if size > most_bytes:
            raise ValueError(f"{size / 1e6:.0f} MB of arrays, allowed are {most_bytes / 1e6:.0f}")
        if damaged := archive.testzip():
            raise ValueError(f"{damaged} is damaged")


def write(path: NoiseFile, **values: Any) -> None:
    if isinstance(path, BytesIO):
        np.savez_compressed(path, **values)
        return
    with open(path, "wb") as file:  # a file object, because numpy appends .npz to names
        np.savez_compressed(file, **values)
