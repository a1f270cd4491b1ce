"""A noise density from a measured 2-D histogram (PN2V: Krull et al. 2020, arXiv:1906.00651)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from samplers.noise import npz
from samplers.noise.base import NoiseModel
from samplers.noise.pairs import draw_pairs

_KEYS = ("histogram", "low", "high")
_OUTLIERS, _BROAD = 1e-3, 4.0  # share of outliers; their std relative to the mean std of the rows
_PRIOR = 1000.0  # pseudo-pairs per row, from a Gaussian like its neighbours, which smooth sparse rows


class HistogramNoise(NoiseModel):
    """p(noisy | signal) as a histogram over one range [low, high] of both, in raw counts.

    The density is linear in the signal between bin centres and constant in a bin of the observation. One
    observation in 1,000 is an outlier from a Gaussian about the signal that is 4 times as wide as the noise,
    so the likelihood is finite, with a gradient, also in empty cells and outside the range. A signal outside
    the range has Gaussian noise with the moments of the edge row.

    Bins must not be wider than the noise: 16-bit data may need thousands of bins, or a GaussianMixtureNoise.

    Args:
        table: non-negative numbers (bins, bins), row = signal, column = observation. Rows are normalised;
            empty rows become Gaussians with the mean offset and variance of their neighbours.
        low: lower end of the range in raw counts.
        high: upper end of the range in raw counts.
    """

    _density: Tensor
    _moments: Tensor

    def __init__(self, table: Sequence[Sequence[float]], low: float, high: float):
        super().__init__()
        array = np.asarray(table)
        self.low, self.high = (float(np.asarray(value).squeeze()) for value in (low, high))
        _check(array, self.low, self.high)
        self.table: list[list[float]] = array.tolist()
        self._width = (self.high - self.low) / len(array)
        mass, offset, variance = _complete(array.astype(np.float64), self.low, self._width)
        # Rebuilt from the constructor's arguments, so a checkpoint need not hold them twice.
        density = torch.tensor(mass / self._width, dtype=torch.float32)
        self.register_buffer("_density", density, persistent=False)
        moments = torch.tensor(np.stack([offset, variance]), dtype=torch.float32)
        self.register_buffer("_moments", moments, persistent=False)
        # One value for all signals: uneven rows would give it a gradient of its own, even 1e5 counts away.
        self._outlier_variance = _BROAD**2 * float(variance.mean())

    @classmethod
    def read(cls, path: npz.NoiseFile) -> HistogramNoise:
        """Reads the model from an .npz file of `write`. ValueError if the file is not one."""
        stored = npz.read(path, _KEYS, ())
        try:
            return cls(*(stored[key].tolist() for key in _KEYS))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: {error}") from None

    def write(self, path: npz.NoiseFile) -> None:
        """Writes the model to an .npz file."""
        npz.write(path, histogram=self.table, low=self.low, high=self.high)

    def _rows(self, signal: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """(row below, weight of the row above, weight of the Gaussian outside, its offset, its variance)."""
        position = (signal - self.low) / self._width - 0.5  # centre of row i is at i
        inside = position.clamp(0, len(self._density) - 1)
        row = inside.detach().long().clamp(max=len(self._density) - 2)
        above = inside - row
        beyond = (position - inside).abs().clamp(max=1)  # fades in over one bin, without a jump
        moments = torch.lerp(self._moments.float()[:, row], self._moments.float()[:, row + 1], above)
        offset, variance = moments
        return row, above, beyond, offset, variance

    def log_likelihood(self, noisy: Tensor, signal: Tensor) -> Tensor:
        with torch.autocast(signal.device.type, enabled=False):
            noisy, signal = torch.broadcast_tensors(noisy.float(), signal.float())
            row, above, beyond, offset, variance = self._rows(signal)
            column = (noisy - self.low) / self._width
            in_range = (column >= 0) & (column < len(self._density))
            column = column.clamp(0, len(self._density) - 1).long()
            table = self._density.float()
            cell = torch.lerp(table[row, column], table[row + 1, column], above) * in_range
            edge = _log_normal(noisy - signal - offset, variance).exp()
            density = torch.lerp(cell, edge, beyond)
            tiny = torch.finfo(torch.float32).tiny
            log_density = density.clamp(min=tiny).log().where(density > tiny, -math.inf)
            outlier = _log_normal(noisy - signal, torch.full_like(signal, self._outlier_variance))
            return torch.logaddexp(log_density + math.log1p(-_OUTLIERS), outlier + math.log(_OUTLIERS))

    def sample(self, signal: Tensor) -> Tensor:
        signal = signal.float()
        row, above, beyond, offset, variance = self._rows(signal)
        row = row + (torch.rand_like(signal) < above)  # interpolated densities are mixtures
        cumulative = (self._density.float() * self._width).cumsum(1)
        target = torch.rand_like(signal) * cumulative[row, -1]
        column = torch.zeros_like(row)
        for bit in reversed(range(len(cumulative).bit_length())):  # bisection needs no array (pixels, bins)
            probe = column + 2**bit
            below = cumulative[row, probe.clamp(max=len(cumulative)) - 1] < target
            column = torch.where((probe < len(cumulative)) & below, probe, column)
        histogram = self.low + (column + torch.rand_like(signal)) * self._width
        normal = torch.randn_like(signal)
        edge = signal + offset + variance.sqrt() * normal
        noisy = torch.where(torch.rand_like(signal) < beyond, edge, histogram)
        outlier = signal + self._outlier_variance**0.5 * normal
        return torch.where(torch.rand_like(signal) < _OUTLIERS, outlier, noisy)

    @classmethod
    def fit(
        cls,
        signal: Tensor | np.ndarray,
        observation: Tensor | np.ndarray,
        bins: int = 256,
        *,
        step: float | None = None,
        percentiles: tuple[float, float] = (0.0, 100.0),
        max_pairs: int = 2_000_000,
        seed: int = 0,
    ) -> HistogramNoise:
        """Histogram of pairs of raw counts over the range of both, except for 0.001 % outliers.

        `signal` broadcasts to `observation`; signals outside `percentiles` are dropped. Integer observations
        are dequantised. With `step` (1 for integers) each bin covers whole steps, because bins that divide a
        step lose likelihood.
        """
        rng = np.random.default_rng(seed)
        step = 1 if step is None and "int" in str(observation.dtype) else step
        s, residual, low, high = draw_pairs(
            signal, observation, percentiles, max_pairs, rng, "HistogramNoise.fit"
        )
        x = s + residual
        low, high = min(low, np.quantile(x, 1e-5)), max(high, np.quantile(x, 1 - 1e-5))
        if step:
            low, high = math.floor(low / step + 0.5), math.ceil(high / step - 0.5) + 1
            width = math.ceil((high - low) / bins)
            bins = max(math.ceil((high - low) / width), 2)
            low, high = (low - 0.5) * step, (low - 0.5 + bins * width) * step
        counts = np.histogram2d(s, x, bins, [[low, high]] * 2)[0]
        if not counts.any():
            raise ValueError("HistogramNoise.fit: no pair in range; pass wider percentiles")
        table = counts + _PRIOR * _smooth_rows(counts, low, (high - low) / bins)
        # Parts per million are short in JSON, and finer than any fit.
        return cls(np.rint(1e6 * table / table.sum(1, keepdims=True)).astype(int), low, high)


def _log_normal(residual: Tensor, variance: Tensor) -> Tensor:
    return -0.5 * (residual**2 / variance + (2 * math.pi * variance).log())


def _row_moments(table: np.ndarray, low: float, width: float) -> tuple[np.ndarray, ...]:
    """(sum, mean - signal, variance) of each row, with the signal at its centre; 0 for empty rows."""
    centres = low + (np.arange(len(table)) + 0.5) * width
    total = table.sum(1)
    share = table / np.where(total > 0, total, 1)[:, None]
    offset = (share * (centres - centres[:, None])).sum(1)
    square = (share * (centres - centres[:, None] - offset[:, None]) ** 2).sum(1)
    return total, offset, np.where(total > 0, square + width**2 / 12, 0)


def _gaussian_rows(offset: np.ndarray, variance: np.ndarray, low: float, width: float) -> np.ndarray:
    """Rows of Gaussian mass per bin, each normalised within the range."""
    centres = low + (np.arange(len(offset)) + 0.5) * width
    mean = np.clip(centres + offset, centres[0], centres[-1])[:, None]
    log_mass = -0.5 * (centres - mean) ** 2 / variance[:, None]
    mass = np.exp(log_mass - log_mass.max(1, keepdims=True))
    return mass / mass.sum(1, keepdims=True)


def _smooth_rows(counts: np.ndarray, low: float, width: float) -> np.ndarray:
    """Gaussian rows whose moments are means over neighbouring rows, weighted by their number of pairs."""
    total, offset, variance = _row_moments(counts, low, width)
    distance = np.subtract.outer(np.arange(len(total)), np.arange(len(total)))
    # The broad term bridges gaps; where there are near pairs, they outweigh it.
    weight = (np.exp(-0.5 * (distance / 2) ** 2) + 1e-6 / (1 + distance**2)) * total
    weight /= weight.sum(1, keepdims=True)
    return _gaussian_rows(weight @ offset, weight @ variance, low, width)


def _complete(table: np.ndarray, low: float, width: float) -> tuple[np.ndarray, ...]:
    """(mass with rows that sum to 1, mean - signal, variance), with empty rows filled from neighbours."""
    total, offset, variance = _row_moments(table, low, width)
    rows, filled = np.arange(len(table)), total > 0
    offset, variance = (np.interp(rows, rows[filled], v[filled]) for v in (offset, variance))
    mass = np.where(filled[:, None], table, _gaussian_rows(offset, variance, low, width))
    return mass / mass.sum(1, keepdims=True), offset, variance


def _check(table: np.ndarray, low: float, high: float) -> None:
    square = table.ndim == 2 and table.shape[0] == table.shape[1] >= 2
    if not square or not np.isfinite(table).all() or (table < 0).any() or not table.any():
        raise ValueError(
            f"HistogramNoise: table of shape {table.shape}; allowed is (bins, bins), at least 2 bins, "
            "finite, no negative and not only zeros"
        )
    if not (math.isfinite(low) and low < high < math.inf):
        raise ValueError(f"HistogramNoise: low={low}, high={high}; needs finite low < high")
