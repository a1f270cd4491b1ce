"""Streams the draws of one image to a file.

So memory does not grow with their number, and an interrupted run keeps the draws that it has made.
"""

import math
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from distill.files import Unfinished, reserve
from distill.hardware import seeded
from distill.prediction.tiles import HALO, fixed_tile, tiles
from samplers import PosteriorSampler
from samplers.base import median
from students.upscale import factors

BAND_BYTES = 2**27  # bytes of all draws that are read at once for the median
BLOCK = 16  # draws from one seed, because samplers encode the image once for several draws


class StoredDraws:
    """Draws of one image by a sampler in eval mode, in the two files `path`.json and `path`.f32.

    Existing draws of the same work are used. Interruptions do not change the draws.

    Args:
        noisy: the image (1, C, *S) in raw counts.
        total: largest number of draws.
        frame: index of the image, for the seed.
        work: fingerprint of the sampler and the image.
    """

    def __init__(
        self, path: Path, sampler: PosteriorSampler, noisy: Tensor, total: int, frame: int = 0, work: str = ""
    ) -> None:
        self._state, self._pixels = Unfinished(path.with_suffix(".json"), work), path.with_suffix(".f32")
        self._sampler, self._noisy, self._total, self._frame = sampler, noisy, total, frame
        self._tile = fixed_tile(noisy.shape[2:])
        self._shape = sampler.draw_shape(noisy.shape)[1:]  # (C, *S) of one draw
        self.seconds: list[float] = self._state.load() or []
        if len(self.seconds) * math.prod(self._shape) * 4 > _size(self._pixels):  # lost by a power failure
            self.seconds = []

    def take(self, n: int) -> tuple[Tensor, Tensor, Tensor, float]:
        """(mean, median, variance, seconds) of the first n draws; the images are (C, *S)."""
        while len(self.seconds) < n:
            self._draw_block()
        return *self._consensus(n), sum(self.seconds[:n])

    def _draw_block(self) -> None:
        done, device = len(self.seconds), self._noisy.device
        count = min(BLOCK, self._total - done)
        seconds, block = np.zeros(count), self._room(done, count)
        with seeded(device, self._frame, done):
            for place in tiles(self._noisy.shape[-2:], self._tile, HALO):
                tile = place.enlarged(factors(self._sampler.scale))
                started = time.perf_counter()
                for i, draw in enumerate(self._sampler.draws(self._noisy[(..., *tile.seen)], count)):
                    pixels = draw[0].float().cpu().numpy()
                    seconds[i] += time.perf_counter() - started
                    block[(i, ..., *tile.kept)] = pixels[(..., *tile.inside)]
                    started = time.perf_counter()
        block.flush()
        self.seconds += seconds.tolist()
        self._state.save(self.seconds)

    def _room(self, done: int, count: int) -> np.memmap:
        """A memory map for `count` more draws, over the rest of draws that were interrupted."""
        size = 4 * math.prod(self._shape)
        with open(self._pixels, "r+b" if done else "wb") as file:
            file.truncate((done + count) * size)
        reserve(self._pixels)
        return np.memmap(self._pixels, np.float32, "r+", done * size, (count, *self._shape))

    def _consensus(self, n: int) -> tuple[Tensor, Tensor, Tensor]:
        """(mean, median, unbiased variance) of n draws, by bands of rows; the variance of one is 0."""
        draws = np.memmap(self._pixels, np.float32, "r", shape=(len(self.seconds), *self._shape))
        height = self._shape[-2]
        rows = max(1, BAND_BYTES // (4 * n * math.prod(self._shape) // height))
        bands = []
        for start in range(0, height, rows):
            band = torch.from_numpy(np.array(draws[:n, ..., start : start + rows, :]))
            mean = band.mean(dim=0, dtype=torch.float64).float()
            bands.append((mean, median(band), (band - mean).square_().sum(dim=0) / max(1, n - 1)))
        mean, medians, variance = (torch.cat(parts, dim=-2) for parts in zip(*bands, strict=True))
        return mean, medians, variance

    def delete(self) -> None:
        self._pixels.unlink(missing_ok=True)
        self._state.delete()


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
