"""How the noise of neighbouring pixels is correlated, from noisy images alone."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from samplers.noise.tiles import RING, read_tiles, ring_statistics

SLIGHT = 0.15  # correlation up to which it is told from structure well enough to correct for it
STRONG = 0.25  # from here on noise has a structure of its own; `GaussianNoise.estimate` is too low
_BINS, _MIN_PIXELS = 20, 10_000
_FINE, _COARSE = [1.0, -6, 15, -20, 15, -6, 1], [0.0, 0, 1, -2, 1, 0, 0]  # differences of order 6 and 2


def neighbour_correlation(frames: Tensor | np.ndarray) -> tuple[float, float]:
    """Correlation of the noise of neighbours along y and along x, from raw frames as `estimate` takes.

    0 where it cannot be told from the image's structure, or frames are small. Beyond STRONG warn: such
    noise is not of single pixels, and the number is only a lower bound of its correlation.
    """
    tiles = read_tiles(frames, "neighbour_correlation")
    return of_tiles(tiles, *ring_statistics(tiles))


def of_tiles(tiles: Tensor, level: Tensor, structure: Tensor) -> tuple[float, float]:
    """`neighbour_correlation` of tiles (T, 1, h, w) and their `ring_statistics`."""
    turned = (v.transpose(-1, -2) for v in (tiles, level, structure))
    return _along_x(*turned), _along_x(tiles, level, structure)


def _along_x(tiles: Tensor, level: Tensor, structure: Tensor) -> float:
    """After differences along y, which noise that is correlated along x does not notice, but structure does.

    Optics blur in all directions, so structure fades the higher the order of the differences, reaches
    further than the next pixel, and varies with brightness. Noise of a detector does none of these.
    """
    if level.numel() < _MIN_PIXELS:
        return 0.0
    pixels = _smooth_pixels(level.flatten(), structure.flatten())
    fine, coarse = (_lags(tiles, kernel, pixels) for kernel in (_FINE, _COARSE))  # each (bins, 2)
    (near, far), fading = fine.T, (coarse - fine)[:, 0]
    # What fades by d was at most about 2 d: of texture in photographs, with white noise.
    structure_share = 2 * fading * (fading.mean() > 0) + far * (far.mean() > 0)
    noise = near - structure_share * (near.mean() > 0)  # structure is hardly ever below 0
    found, error = float(noise.mean()), float(noise.std()) / len(noise) ** 0.5
    # Neighbouring pixels lie in different bins, whose scatter is thus too small: an error is about 1.4 of it.
    if near.mean().abs() <= SLIGHT and 4 * error < abs(found) and found * near.mean() > 0:
        return found
    lowest = float(coarse[:, 0].min())  # noise has it at any brightness
    return lowest if lowest > STRONG else 0.0


def _smooth_pixels(level: Tensor, structure: Tensor) -> list[Tensor]:
    """Indices of the smoother half of each brightness bin of equally many pixels."""
    bins = level.argsort().tensor_split(_BINS)
    return [members[structure[members].argsort()[: len(members) // 2]] for members in bins]


def _lags(tiles: Tensor, kernel: list[float], pixels: list[Tensor]) -> Tensor:
    """Correlation (bins, 2) at one and two pixels along x of differences along y."""
    residual = F.conv2d(tiles, torch.tensor(kernel)[None, None, :, None])
    edge, width = RING // 2, residual.shape[-1]
    at = [residual[..., edge + lag : width - edge + lag].flatten() for lag in range(-2, 3)]
    products = torch.stack([at[2] ** 2, at[2] * (at[1] + at[3]) / 2, at[2] * (at[0] + at[4]) / 2])
    power = torch.stack([products[:, members].double().mean(1) for members in pixels])
    return power[:, 1:] / power[:, :1].clamp(min=1e-12)  # 0 where a camera's black is cut off
