"""Autocorrelation of noise images, to check that sampled noise resembles real noise."""

import numpy as np
import torch
from torch import Tensor


def autocorrelation(noise: Tensor | np.ndarray, lags: int | tuple[int, int] = 10) -> Tensor:
    """Autocorrelation of noise images, a tensor (2 Ly + 1, 2 Lx + 1).

    Entry [Ly + dy, Lx + dx] is the correlation of pixels that are dy rows and dx columns apart; the centre
    is 1. The mean over all images is subtracted before.

    Args:
        noise: images (N, H, W), (N, 1, H, W) or (H, W).
        lags: largest distances Ly and Lx in pixels, or one number for both. ValueError if they are not below
            the size of the images.
    """
    noise = torch.as_tensor(noise).double()
    height, width = noise.shape[-2:]
    rows, columns = (lags, lags) if isinstance(lags, int) else lags
    if not (0 <= rows < height and 0 <= columns < width):
        raise ValueError(
            f"autocorrelation: got lags=({rows}, {columns}) for images of {height} x {width}; "
            "lags must be at least 0 and below the size"
        )
    noise = noise.reshape(-1, height, width) - noise.mean()
    spectrum = torch.fft.rfft2(noise, s=(height + rows, width + columns))  # padded: no wrap-around
    total = torch.fft.irfft2(spectrum.abs().square().mean(0), s=(height + rows, width + columns))
    dy, dx = torch.arange(-rows, rows + 1), torch.arange(-columns, columns + 1)
    pairs = (height - dy.abs())[:, None] * (width - dx.abs())
    covariance = total[dy][:, dx] / pairs  # negative lags are the end of the transform
    return covariance / covariance[rows, columns]
