"""Variance of the noise against brightness, from the smooth pixels of noisy images (Foi et al. 2008)."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from samplers.noise import neighbours
from samplers.noise.tiles import RING, argsort, read_tiles, ring_statistics, smoothest

_EDGE = (RING - 3) // 2
_INNER = (..., slice(_EDGE, -_EDGE), slice(_EDGE, -_EDGE))  # of 3x3 pixels each, those with a whole ring
_FEW, _MOST = 0.005, 0.6  # shares of clipped pixels that do not matter, and that hide what was there


def variance_bins(frames: Tensor | np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    """(mean signal, variance, number of pixels) of bins of brightness, for `GaussianNoise.estimate`."""
    tiles = read_tiles(frames, "GaussianNoise.estimate")
    level, structure = ring_statistics(tiles)
    mean, square = _pixel_statistics(tiles)
    for correlation in neighbours.of_tiles(tiles, level, structure):
        if abs(correlation) <= neighbours.SLIGHT:
            square = square / (1 - 4 / 3 * correlation)  # see `_pixel_statistics`
    darkest, brightest = _piled_up(tiles)
    saturated, cut = _around(brightest), _around(darkest)
    pixels = _flat(mean, square, level, structure, saturated, torch.zeros_like(cut))
    bins = _smooth_bins(*pixels)
    if darkest.any() and not _counts_photons(tiles, *bins):
        pixels = _flat(mean, square, level, structure, saturated, cut)
        bins = _smooth_bins(*pixels)
    if not _varies(bins[1], bins[0]).any():  # zeros after background subtraction: look elsewhere
        nonzero = _varies(pixels[3] + pixels[1], pixels[2])  # structure, square and level
        bins = _smooth_bins(*(v[nonzero] for v in pixels)) if nonzero.any() else bins
    if not _varies(bins[1], bins[0]).any():
        raise ValueError(
            "GaussianNoise.estimate: the frames show no noise; pass raw camera counts, or give std or "
            "gain and offset yourself"
        )
    return bins


def _flat(*pixels: Tensor) -> tuple[Tensor, ...]:
    return tuple(v.flatten().double() for v in pixels)


def _pixel_statistics(tiles: Tensor) -> tuple[Tensor, Tensor]:
    """Matched mean and squared residual of each pixel for the noise line, each (T, 1, h - 6, w - 6).

    The residual r = sum w_i z_i over 3x3 pixels (unit norm, zero for cubics; Immerkaer 1996) has E[r^2] =
    gain * E[sum w_i^2 z_i] + offset exactly, for any noise with that variance. No Gaussian constant is
    involved, so it also holds for 8-bit data and a dozen photons. If neighbours along one direction are
    correlated by c, E[r^2] is smaller by the factor 1 - 4/3 c.
    """
    laplacian = torch.tensor([1.0, -2.0, 1.0])
    kernel = torch.outer(laplacian, laplacian)[None, None] / 6
    residual, mean = F.conv2d(tiles, torch.cat([kernel, kernel**2]))[_INNER].split(1, dim=1)
    return mean, residual**2


def _around(chosen: Tensor) -> Tensor:
    """Share of chosen pixels among the 3x3 around each, (T, 1, h - 6, w - 6)."""
    return F.avg_pool2d(chosen.float(), 3, 1)[_INNER]


def _piled_up(tiles: Tensor) -> tuple[Tensor, Tensor]:
    """Whether a pixel has the lowest, or the highest, value, if more pixels have it than the next value."""
    values, counts = tiles.unique(return_counts=True)
    low, high = (counts[end] > counts[next_one].clamp(min=20) for end, next_one in ((0, 1), (-1, -2)))
    return (tiles == values[0]) & low, (tiles == values[-1]) & high


def _counts_photons(tiles: Tensor, level: Tensor, variance: Tensor, pixels: Tensor) -> bool:
    """Whether the lowest value is that of no photon, so that many pixels have it without any clipping.

    Then values are about a gain apart, and there is next to no noise at the lowest one.
    """
    gain, offset = fit_line(level, variance, pixels)
    lowest = float(tiles.min())
    return float(tiles[tiles > lowest].min()) - lowest > 0.4 * gain and gain * lowest + offset < 0.4 * gain**2


def _smooth_bins(
    mean: Tensor, square: Tensor, level: Tensor, structure: Tensor, saturated: Tensor, cut: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(mean, variance, number of pixels) of each brightness bin, over the smoothest fifth of its pixels.

    saturated, cut: share of the pixels around each that have the highest, and the lowest, value.
    """
    low, high = level.min(), level.max()
    index = ((level - low) / (high - low).clamp(min=1e-12) * 100).long()
    index = index.clamp(max=99)
    sizes = index.bincount()
    rows = []
    for members in argsort(index).tensor_split(sizes.cumsum(0)[:-1]):
        if len(members) < 50:
            continue
        smooth = smoothest(members, structure, max(len(members) // 5, 50))
        rows.append([float(v[smooth].mean()) for v in (mean, square, saturated, cut)] + [len(smooth)])
    if not rows:  # an image of a few pixels: one bin of all
        rows = [[float(v.mean()) for v in (mean, square, saturated, cut)] + [len(mean)]]
    table = torch.tensor(rows, dtype=torch.float64)
    # Clipping reduces variance. If it is nearly everywhere, the line is that of what was recorded.
    whole = table[:, 2:4].amax(1) < _FEW
    if int(whole.sum()) < 3:
        return table[:, 0], table[:, 1], table[:, 4]
    mean, square, _, cut, pixels = table[(table[:, 2] < _FEW) & (table[:, 3] < _MOST)].T
    return *_before_the_cut(mean, square, cut), pixels


def _before_the_cut(mean: Tensor, square: Tensor, cut: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of normal noise before a share `cut` of it was raised to the lowest value.

    mean, square: mean and variance after that.
    """
    above = torch.special.ndtri(1 - cut.clamp(min=_FEW))  # the mean above the lowest value, in std
    density, kept = (-above.square() / 2).exp() / math.sqrt(2 * math.pi), torch.special.ndtr(above)
    raised = density + above * kept
    variance = square / ((1 + above.square()) * kept + above * density - raised.square())
    before = mean + variance.sqrt() * (above - raised)
    few = cut < _FEW
    return torch.where(few, mean, before), torch.where(few, square, variance)


def _varies(variance: Tensor, level: Tensor) -> Tensor:
    """Whether a variance exceeds the rounding error that float32 leaves of a constant."""
    return variance > 1e-12 * level**2


def fit_line(x: Tensor, variance: Tensor, pixels: Tensor) -> tuple[float, float]:
    """(gain, offset) of a weighted, robust (Cauchy) line, with gain >= 0 and positive variance at every x."""
    fitted, outlier = variance.clone(), torch.ones_like(variance)
    floor = variance[variance > 0].min() * 0.1 if (variance > 0).any() else variance.new_tensor(0.0)
    gain, offset = variance.new_tensor(0.0), variance.mean()
    for _ in range(20):
        # The mean r^2 of n pixels scatters by fitted * sqrt(2 / n); texture adds a few per cent to any bin.
        error = fitted.clamp(min=floor) * (2 / pixels + 0.05**2).sqrt()
        weight = outlier / error**2
        centre = (weight * x).sum() / weight.sum()
        spread = (weight * (x - centre) ** 2).sum()
        height = (weight * variance).sum() / weight.sum()
        gain = (weight * (x - centre) * variance).sum() / spread if spread > 0 else torch.zeros_like(gain)
        if gain * spread.sqrt() < 2:  # negative or within its standard error: a flat image
            gain = torch.zeros_like(gain)
        if height - gain * (centre - x.min()) < floor:
            height = height.clamp(min=floor)
            gain = (height - floor) / (centre - x.min()).clamp(min=1e-12)
        offset = height - gain * centre
        fitted = gain * x + offset
        outlier = 1 / (1 + ((variance - fitted) / (2 * error)) ** 2)
    return float(gain), float(offset)
