"""How far an image is from its ground truth; images (C, H, W) in raw counts."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from losses import LPIPS

SSIM_WINDOW = 11  # px: what a Gaussian of 1.5 px is cut to


def psnr(image: Tensor, clean: Tensor) -> float:
    """20 log10 R - 10 log10 MSE in dB, where R = max(clean) - min(clean); nothing is rescaled."""
    error = (image.double() - clean.double()).square().mean()
    span = clean.max().double() - clean.min().double()
    return float(20 * torch.log10(span) - 10 * torch.log10(error))


def ssim(image: Tensor, clean: Tensor) -> float:
    """Structural similarity (Wang et al. 2004: Gaussian window of 1.5 px) with PSNR's range.

    NaN for images of less than 11 pixels on a side.
    """
    from skimage.metrics import structural_similarity

    if min(clean.shape[-2:]) < SSIM_WINDOW:
        return float("nan")
    pixels, truth = image.double().numpy(), clean.double().numpy()
    similarity: Any = structural_similarity(
        pixels, truth, data_range=float(np.ptp(truth)), channel_axis=0,
        gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
    )  # fmt: skip
    return float(similarity)


def lpips(net: str = "alex", weights: str | None = None) -> Callable[[Tensor, Tensor], float]:
    """LPIPS (lower is better); the 0.1 and 99.9 percentiles of the ground truth are -1 and 1."""
    distance = LPIPS(net, weights)

    @torch.no_grad()
    def score(image: Tensor, clean: Tensor) -> float:
        mean, std = clean.mean(), clean.std().clamp(min=1e-12)
        image, clean = ((each - mean) / std for each in (image, clean))
        distance.prepare(clean[None])
        return float(distance(image[None], clean[None, None]))

    return score
