"""Metrics of images (C, *S) in raw counts against their ground truth."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from losses import LPIPS
from students.dimensions import as_planes

SSIM_WINDOW, SSIM_SIGMA = 11, 1.5  # px; width at which the Gaussian window is cut, and its std


def psnr(image: Tensor, clean: Tensor) -> float:
    """PSNR, 20 log10 R - 10 log10 MSE in dB, with R = max(clean) - min(clean), without rescaling."""
    error = (image.double() - clean.double()).square().mean()
    span = clean.max().double() - clean.min().double()
    return float(20 * torch.log10(span) - 10 * torch.log10(error))


def ssim(image: Tensor, clean: Tensor) -> float:
    """Structural similarity (Wang et al. 2004, with a Gaussian window of 1.5 px) with the range of PSNR.

    Of volumes it is that of their planes. It is NaN for images with a side of less than 11 pixels.
    """
    if min(clean.shape[-2:]) < SSIM_WINDOW:
        return float("nan")
    x, y = (each.double().flatten(0, -3) for each in (image, clean))  # every channel and plane by itself
    offsets = torch.arange(SSIM_WINDOW, dtype=torch.float64) - SSIM_WINDOW // 2
    window = torch.exp(-0.5 * (offsets / SSIM_SIGMA) ** 2)
    window = window / window.sum()

    def local(values: Tensor) -> Tensor:
        """Means over the window, at positions where it lies inside the image."""
        return F.conv2d(F.conv2d(values[:, None], window[None, None, :, None]), window[None, None, None])

    mean_x, mean_y = local(x), local(y)
    var_x, var_y = local(x * x) - mean_x**2, local(y * y) - mean_y**2
    covariance = local(x * y) - mean_x * mean_y
    span = y.max() - y.min()
    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return float((luminance * (2 * covariance + c2) / (var_x + var_y + c2)).mean())


def lpips(net: str = "alex", weights: str | None = None) -> Callable[[Tensor, Tensor], float]:
    """LPIPS (lower is better), with the 0.1 and 99.9 percentiles of the ground truth at -1 and 1."""
    distance = LPIPS(net, weights)

    @torch.no_grad()
    def score(image: Tensor, clean: Tensor) -> float:
        mean, std = clean.mean(), clean.std().clamp(min=1e-12)
        image, clean = (as_planes(((each - mean) / std)[None]) for each in (image, clean))
        distance.prepare(clean)
        return float(distance(image, clean[None]))

    return score
