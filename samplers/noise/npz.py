"""Noise models on disk: .npz files without pickle, which the PN2V-family tools read and write too."""

from collections.abc import Sequence
from io import BytesIO
from os import PathLike
from typing import Any

import numpy as np

NoiseFile = str | PathLike | BytesIO


def read(path: NoiseFile, needed: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """All arrays; ValueError, which names `path`, if it is not such a file or lacks a key."""
    if isinstance(path, BytesIO):
        path.seek(0)  # another may have read it
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file}
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; pass a noise model (.npz)") from None
    except (OSError, ValueError, EOFError, AttributeError, TypeError) as error:
        raise ValueError(f"{path}: not a readable noise-model .npz file ({error})") from error
    if missing := [key for key in needed if key not in arrays]:
        raise ValueError(
            f"{path}: holds {', '.join(arrays) or 'nothing'} but not {', '.join(missing)}; "
            "pass a noise model of this kind (.npz)"
        )
    return arrays


def write(path: NoiseFile, **values: Any) -> None:
    if isinstance(path, BytesIO):
        np.savez_compressed(path, **values)
        return
    with open(path, "wb") as file:  # a file object, else numpy appends .npz to the name
        np.savez_compressed(file, **values)
