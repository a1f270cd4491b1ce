"""Draws that a finished sampler made once, read back for any number of students."""

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
    """The draws in a folder that `distill.cache_draws` wrote, of the images they were made of.

    Training gives it patches of the images with their draws as further channels, so the sampler
    itself is never run: a student learns from all of them at the cost of one. It knows no other
    images.

    A run may not say which cache to open, so the sampler of a run that is loaded from its files has no path,
    and no draws.
    """

    files = ("path",)

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = str(path or "")
        if not path:
            return
        try:
            self._header = _header(Path(path) / "draws.json")
            self._draws = _mapped(Path(path) / "draws.npy", self._header["layout"])  # (N, K, C, Y, X)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"CachedDraws: {path}: not a finished cache ({error}); write one with distill cache"
            ) from None
        self.free_draws = self._draws.shape[1]
        self.isotropic, self.mirrors = self._header["isotropic"], self._header["mirrors"]
        scale, names = self._header.get("scale", 1), self._header.get("out_names", ())
        self.declare(self._draws.shape[2], scale, names)
        self._channels = self._header.get("channels", self._draws.shape[2])  # of the images
        if factors(scale) != (
            1,
            1,
        ):  # a patch has its draws' pixels in an order that mirrors do not keep
            self.isotropic, self.mirrors = False, ()

    def training_images(self, frames: Any) -> "FramesAndDraws":
        """Frames (N, C, Y, X) -> (N, C + K * C' * y * x, Y, X), for draws of C' channels that are y and x
        times larger. ValueError for other images."""
        self._check_path()
        if fingerprint(frames) != self._header["images"]:
            raise ValueError(
                f"CachedDraws: {self.path}: its draws are of {self._header['name']}, not of these "
                "images; pass those, or cache the draws of these"
            )
        return FramesAndDraws(frames, self._draws, self._header, self.path)

    def sample(self, noisy: Tensor, n: int = 1) -> Tensor:
        """(B, C + K * C' * y * x, *S), cut from what `training_images` gives -> n <= K different draws."""
        self._check_path()
        (k, channels), (y, x) = self._draws.shape[1:3], factors(self.scale)
        wanted = self._channels + k * channels * y * x
        if noisy.shape[1] != wanted or n > k:
            raise ValueError(
                f"CachedDraws: got {noisy.shape[1]} channels and n={n}, has {k} draws of its own "
                f"images ({wanted} channels); for others, use the sampler itself"
            )
        draws = noisy[:, self._channels :].unflatten(1, (k, channels, y, x)).transpose(0, 1)
        draws = draws.permute(0, 1, 2, 5, 3, 6, 4).flatten(5).flatten(3, 4)  # (K, B, C', H * y, W * x)
        return draws if n == k else draws[torch.randperm(k)[:n]]

    def draws(self, noisy: Tensor, n: int) -> Iterator[Tensor]:
        yield from self.sample(noisy, n)

    def _check_path(self) -> None:
        if not self.path:
            raise ValueError(
                "CachedDraws: has no path, and a run may not say which cache to open; use the sampler itself "
                "for draws, or none (evaluate: an empty --draws)"
            )


class FramesAndDraws:
    """Frames (N, C, Y, X) and their draws (N, K, C', Y * y, X * x) as one (N, C + K * C' * y * x, Y, X), raw
    counts: the y * x pixels of a draw that lie in one of the frame are channels there.

    Index it with [frame, :, rows, columns]; only what is indexed is read, and all draws of a frame the
    first time, for their checksum.
    """

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
        expected = self._unchecked.pop(frame, None)  # None: another thread is at it
        if expected is not None and checksum(self._draws[frame]) != expected:
            raise ValueError(
                f"CachedDraws: {self._path}: the draws of frame {frame} are damaged (their checksum does not "
                "fit); delete that cache and write it again"
            )


def _enlarged(places: slice, length: int, scale: int) -> slice:
    """Where these pixels of an axis lie in a draw."""
    start, stop, _ = places.indices(length)
    return slice(start * scale, stop * scale)


def sealed(header: dict[str, Any]) -> dict[str, Any]:
    """The header with a digest of itself, as draws.json has it."""
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
    """Of one frame's draws, (K, C, Y, X)."""
    return crc32(np.ascontiguousarray(draws).data)


def layout(path: Path, draws: np.memmap) -> dict[str, Any]:
    """How the draws lie in their file, and the checksum of what numpy wrote before them."""
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
    """Of images (N, C, Y, X): their shape, and the pixels of the first, middle and last frame."""
    digest = hashlib.sha256(repr(tuple(frames.shape)).encode())
    for i in sorted({0, len(frames) // 2, len(frames) - 1}):
        digest.update(np.ascontiguousarray(frames[i], np.float32).data)
    return digest.hexdigest()
