"""Streams the draws of one image to a file, so memory does not grow with their number and an interrupted
run keeps what it has."""

import time
from pathlib import Path
from zlib import crc32

import numpy as np
import torch
from torch import Tensor

from distill.files import Unfinished
from distill.hardware import synchronize
from samplers import PosteriorSampler
from samplers.base import median

BAND_BYTES = 2**27  # of all draws, read at once for the median


class StoredDraws:
    """Draws of `noisy` (1, C, H, W) by a sampler in eval mode, at most `total`, in the two files
    `path`.json and .f32; those that are there count if they are of the same work.

    work: a fingerprint of the sampler and the image.
    """

    def __init__(
        self, path: Path, sampler: PosteriorSampler, noisy: Tensor, total: int, work: str = ""
    ) -> None:
        self._state, self._pixels = Unfinished(path.with_suffix(".json"), work), path.with_suffix(".f32")
        self._noisy = noisy
        self._shape: list[int]  # (C, H, W), of one draw
        self.seconds: list[float]
        self._shape, self.seconds = self._state.load() or ([], [])
        self._draws = sampler.draws(noisy, total - len(self.seconds))  # encodes once

    def take(self, n: int) -> tuple[Tensor, Tensor, Tensor, float]:
        """Mean, median and variance of the first n draws, each (C, H, W), and the seconds they took."""
        device = self._noisy.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(crc32(f"from draw {len(self.seconds)}".encode()))  # none twice after a stop
            while len(self.seconds) < n:
                started = time.perf_counter()
                draw = next(self._draws)[0].float().cpu()
                synchronize(device)
                self._append(draw.numpy(), time.perf_counter() - started)
        return *self._consensus(n), sum(self.seconds[:n])

    def _append(self, draw: np.ndarray, seconds: float) -> None:
        self._shape = list(draw.shape)
        with open(self._pixels, "r+b" if self.seconds else "wb") as file:
            file.seek(len(self.seconds) * draw.nbytes)  # over what a stop may have left half-written
            file.write(draw.tobytes())
        self.seconds.append(seconds)
        self._state.save([self._shape, self.seconds])

    def _consensus(self, n: int) -> tuple[Tensor, Tensor, Tensor]:
        """(mean, median, unbiased variance: 0 of one draw), a band of rows at a time."""
        draws = np.memmap(self._pixels, np.float32, "r", shape=(len(self.seconds), *self._shape))
        channels, height, width = self._shape
        rows = max(1, BAND_BYTES // (4 * n * channels * width))
        bands = []
        for start in range(0, height, rows):
            band = torch.from_numpy(np.array(draws[:n, :, start : start + rows]))
            mean = band.mean(dim=0, dtype=torch.float64).float()
            bands.append((mean, median(band), (band - mean).square_().sum(dim=0) / max(1, n - 1)))
        mean, middle, variance = (torch.cat(parts, dim=1) for parts in zip(*bands, strict=True))
        return mean, middle, variance

    def delete(self) -> None:
        self._pixels.unlink(missing_ok=True)
        self._state.delete()
