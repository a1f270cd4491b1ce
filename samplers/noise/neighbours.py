"""Estimates the correlation between the noise of neighbouring pixels from noisy images alone."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from samplers.noise.tiles import RING, argsort, read_tiles, ring_statistics, smoothest

SLIGHT = 0.15  # correlation up to which it is known well enough to correct for it
STRONG = 0.25  # correlation from which on `GaussianNoise.estimate` is too low
_BINS, _MIN_PIXELS = 20, 10_000
_FINE, _COARSE = [1.0, -6, 15, -20, 15, -6, 1], [0.0, 0, 1, -2, 1, 0, 0]  # differences of order 6 and 2


def neighbour_correlation(frames: Tensor | np.ndarray) -> tuple[float, float]:
    """Correlation between the noise of neighbouring pixels, (along y, along x).

    It is 0 if it cannot be distinguished from the structure of the images, or if the frames are small. Above
    STRONG it is only a lower bound.

    Args:
        frames: images (N, C, H, W), (N, H, W) or (H, W) in raw counts, as for `GaussianNoise.estimate`.
    """
    tiles = read_tiles(frames, "neighbour_correlation")
    return of_tiles(tiles, *ring_statistics(tiles))


def of_tiles(tiles: Tensor, level: Tensor, structure: Tensor) -> tuple[float, float]:
    """`neighbour_correlation` from tiles (T, 1, h, w) and their `ring_statistics`."""
    if level.numel() < _MIN_PIXELS:
        return 0.0, 0.0
    bins = _bins(level.flatten(), structure.flatten())
    return _along(-2, tiles, bins), _along(-1, tiles, bins)


def _along(axis: int, tiles: Tensor, bins: Tensor) -> float:
    """Correlation along y (axis -2) or x (-1), from differences across, which reduce structure but not the
    noise's correlation.

    Optics blur in all directions, so structure fades with the order of the differences, reaches further than
    the next pixel, and varies with brightness. The noise of a detector does none of these.
    """
    taps = torch.tensor([_FINE, _COARSE])[:, None, :, None]
    residuals = F.conv2d(tiles, taps if axis == -1 else taps.mT)
    fine, coarse = (_lags(axis, each, bins) for each in residuals.unbind(1))  # each (bins, 2)
    (near, far), fading = fine.T, (coarse - fine)[:, 0]
    # Texture of photographs whose correlation falls by d from one order to the other had at most about 2 d.
    structure_share = 2 * fading * (fading.mean() > 0) + far * (far.mean() > 0)
    noise = near - structure_share * (near.mean() > 0)  # structure is rarely correlated negatively
    mean, error = float(noise.mean()), float(noise.std()) / len(noise) ** 0.5
    # Neighbouring pixels lie in different bins, so bins are dependent: the true error is 1.4 times that.
    if near.mean().abs() <= SLIGHT and 4 * error < abs(mean) and mean * near.mean() > 0:
        return mean
    lowest = float(coarse[:, 0].min())  # unlike structure, noise is correlated at every brightness
    return lowest if lowest > STRONG else 0.0


def _bins(level: Tensor, structure: Tensor) -> Tensor:
    """Bin of brightness of each flat pixel, of equally many each; _BINS for the less smooth half of each."""
    bins = torch.full(level.shape, _BINS)
    for i, members in enumerate(argsort(level).tensor_split(_BINS)):
        bins[smoothest(members, structure, len(members) // 2)] = i
    return bins


def _lags(axis: int, residual: Tensor, bins: Tensor) -> Tensor:
    """Correlation (_BINS, 2) of residuals (T, h, w) at distances of one and two pixels along an axis."""
    edge, length = RING // 2, residual.shape[axis]
    at = [residual.narrow(axis, edge + lag, length - 2 * edge).flatten() for lag in range(-2, 3)]
    products = at[2] ** 2, at[2] * (at[1] + at[3]) / 2, at[2] * (at[0] + at[4]) / 2
    power = torch.stack([bins.bincount(each.double())[:_BINS] for each in products], dim=1)
    return power[:, 1:] / power[:, :1].clamp(min=1e-12)  # the power is 0 where black is cut off
