"""Draws that a sampler made once, read from disk to train any number of students."""

import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import torch
from torch import Tensor

from samplers.base import PosteriorSampler
from students.upscale import factors


class CachedDraws(PosteriorSampler):
    """A frozen sampler that returns the draws that `distill.cache_draws` wrote to a folder.

    In training, the draws of each patch come as further channels of that patch, so the original sampler is
    never run, and many students cost as many draws as one. Only the images that the cache was made from have
    draws.

    A model file may not say which folder to open, so a CachedDraws that is loaded from a run has neither a
    path nor draws.

    Args:
        path: folder that `distill cache` or `distill.cache_draws` wrote. ValueError if it is not a finished
            cache.
    """

    files = ("path",)

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = str(path or "")
        if not path:
            return
        try:
            self.header = _header(Path(path) / "draws.json")
            self._draws = _mapped(Path(path) / "draws.npy", self.header["layout"])  # (N, K, C, Y, X)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"CachedDraws: {path}: not a finished cache ({error}); write one with distill cache"
            ) from None
        self.free_draws = self._draws.shape[1]
        self.isotropic, self.mirrors = self.header["isotropic"], self.header["mirrors"]
        scale, names = self.header.get("scale", 1), self.header.get("out_names", ())
        self.declare(self._draws.shape[2], scale, names)
        self._channels = self.header.get("channels", self._draws.shape[2])  # of the images
        # The pixels of an enlarged draw are channels in a fixed order, which mirroring the patch would break.
        if factors(scale) != (1, 1):
            self.isotropic, self.mirrors = False, ()

    def training_images(self, frames: Any) -> "FramesAndDraws":
        """Appends the draws to the frames: (N, C, Y, X) -> (N, C + K * C' * y * x, Y, X).

        A frame has K draws of C' channels, y and x times as large as the frame. Raises ValueError if the
        cache was not made from these frames.
        """
        self._check_path()
        if fingerprint(frames) != self.header["images"]:
            raise ValueError(
                f"CachedDraws: {self.path}: its draws are of {self.header['name']}, not of these "
                "images; pass those, or cache the draws of these"
            )
        return FramesAndDraws(frames, self._draws, self.header, self.path)

    def sample(self, noisy: Tensor, n: int = 1) -> Tensor:
        """n <= K different draws of patches (B, C + K * C' * y * x, *S) that `training_images` provides."""
        self._check_path()
        (k, channels), (y, x) = self._draws.shape[1:3], factors(self.scale)
        total = self._channels + k * channels * y * x
        if noisy.shape[1] != total or n > k:
            raise ValueError(
                f"CachedDraws: got {noisy.shape[1]} channels and n={n}, has {k} draws of its own "
                f"images ({total} channels); for others, use the sampler itself"
            )
        draws = noisy[:, self._channels :].unflatten(1, (k, channels, y, x)).transpose(0, 1)
        draws = draws.permute(0, 1, 2, 5, 3, 6, 4).flatten(5).flatten(3, 4)  # (K, B, C', H * y, W * x)
        return draws if n == k else draws[torch.randperm(k)[:n]]

    def draws(self, noisy: Tensor, n: int) -> Iterator[Tensor]:
        yield from self.sample(noisy, n)

    def _check_path(self) -> None:
        if not self.path:
            raise ValueError(
                "CachedDraws: has no path, because a run may not say which cache to open; use the sampler "
                "itself for draws, or ask for none (evaluate: an empty --draws)"
            )


class FramesAndDraws:
    """Frames and their draws as one array-like (N, C + K * C' * y * x, Y, X), in raw counts.

    The frames are (N, C, Y, X), the draws (N, K, C', Y * y, X * x); the y * x pixels of a draw that cover
    one pixel of the frame become channels of that pixel. Index it with [frame, :, rows, columns]. Only the
    indexed part is read, except that the first access to a frame reads all its draws to verify their
    checksum.
    """

    ndim = 4

    def __init__(self, frames: Any, draws: np.ndarray, header: dict[str, Any], path: str) -> None:
        self.frames, self._draws, self._path = frames, draws, path
        self._unchecked = dict(enumerate(header["checksums"]))
        self.mean, self.std = (
            np.array(header[key], np.float32)[None, :, None, None] for key in ("mean", "std")
        )
        n, channels, *size = frames.shape
        self._scale = factors(header.get("scale", 1))
        self.shape = (n, channels + draws.shape[1] * draws.shape[2] * math.prod(self._scale), *size)

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, key: tuple) -> np.ndarray:
        frame, _, rows, columns = key
        if frame in self._unchecked:
            self._check(frame)
        noisy = np.asarray(self.frames[key], np.float32)
        places = [_enlarged(*each) for each in zip((rows, columns), self.shape[2:], self._scale, strict=True)]
        draws = self._draws[frame, :, :, *places].astype(np.float32) * self.std + self.mean
        (height, width), (y, x) = noisy.shape[1:], self._scale
        inside = draws.reshape(-1, height, y, width, x).transpose(0, 2, 4, 1, 3)
        return np.concatenate([noisy, inside.reshape(-1, height, width)])

    def _check(self, frame: int) -> None:
        expected = self._unchecked.pop(frame, None)  # None: another thread checks it
        if expected is not None and checksum(self._draws[frame]) != expected:
            raise ValueError(
                f"CachedDraws: {self._path}: the draws of frame {frame} are damaged (their checksum does not "
                "fit); delete that cache and write it again"
            )


def _enlarged(places: slice, length: int, scale: int) -> slice:
    """Maps a slice of a frame's axis to the slice of a draw's axis, which is `scale` times as long."""
    start, stop, _ = places.indices(length)
    return slice(start * scale, stop * scale)


def sealed(header: dict[str, Any]) -> dict[str, Any]:
    """The header with its own digest under "sha256", as draws.json stores it."""
    return header | {"sha256": _digest(header)}


def _header(path: Path) -> dict[str, Any]:
    header = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(header, dict) or "sha256" not in header:
        raise ValueError(f"{path.name} is damaged or of an earlier version")
    if header.pop("sha256") != _digest(header):
        raise ValueError(f"{path.name} is damaged")
    return header


def _digest(header: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()


def checksum(draws: np.ndarray) -> int:
    """CRC-32 of the draws of one frame (K, C, Y, X)."""
    return crc32(np.ascontiguousarray(draws).data)


def layout(path: Path, draws: np.memmap) -> dict[str, Any]:
    """Position and type of the draws in their .npy file, with a checksum of the .npy header before them."""
    head = _checksum_of_start(path, draws.offset)
    return {"dtype": draws.dtype.str, "shape": list(draws.shape), "offset": draws.offset, "head": head}


def _mapped(path: Path, layout: dict[str, Any]) -> np.memmap:
    if _checksum_of_start(path, layout["offset"]) != layout["head"]:
        raise ValueError(f"{path.name} is damaged")
    return np.memmap(path, layout["dtype"], "r", layout["offset"], tuple(layout["shape"]))


def _checksum_of_start(path: Path, size: int) -> int:
    with open(path, "rb") as file:
        return crc32(file.read(size))


def fingerprint(frames: Any) -> str:
    """SHA-256 of the shape of images (N, C, Y, X) and of the pixels of their first, middle and last frame."""
    digest = hashlib.sha256(repr(tuple(frames.shape)).encode())
    for i in sorted({0, len(frames) // 2, len(frames) - 1}):
        digest.update(np.ascontiguousarray(frames[i], np.float32).data)
    return digest.hexdigest()
