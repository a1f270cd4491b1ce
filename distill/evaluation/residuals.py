"""Statistics without ground truth: whether noisy - denoised looks like noise, and like nothing else."""

import torch
from torch import Tensor

from distill.evaluation.tables import Row
from samplers import AutoregressiveNoise, NoiseModel
from samplers.noise import autocorrelation
from students.dimensions import as_planes
from students.hot_pixels import fill_hot_pixels


def residual_scores(noisy: Tensor, denoised: Tensor, noise_model: NoiseModel | None) -> Row:
    """Statistics of the residual noisy - denoised of images (C, *S), of volumes in their planes.

    They are its std in raw counts, its correlation with the next pixel along x and y, and its NLL under the
    noise model in nats per pixel. Structure that was removed with the noise is correlated, and so is
    correlated noise. The keys expected_* are the values for noise that the model draws around `denoised`. A
    smaller std or NLL means that noise was left in the image, or that the model is too wide; a larger one
    means that structure was removed. Hot pixels, which are no noise, are left out.
    """
    noisy, denoised = as_planes(noisy[None]), as_planes(denoised[None])
    residual = noisy - denoised
    residual = fill_hot_pixels(residual, residual / residual.std())
    noisy = denoised + residual
    height, width = residual.shape[-2:]
    lags = min(1, height - 1), min(1, width - 1)
    neighbours = autocorrelation(residual, lags)
    row: Row = {
        "residual_std": float(residual.std()),
        "correlation_x": float(neighbours[lags[0], -1]),
        "correlation_y": float(neighbours[-1, lags[1]]),
    }
    if noise_model is None:
        return row
    row["nll"] = _nll(noise_model, noisy, denoised)
    if not any(isinstance(each, AutoregressiveNoise) for each in noise_model.modules()):
        # It draws pixel by pixel, which takes minutes.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            sample = noise_model.sample(denoised)
        row["expected_std"] = float((sample - denoised).std())
        row["expected_nll"] = _nll(noise_model, sample, denoised)
    return row


@torch.no_grad()
def _nll(noise_model: NoiseModel, noisy: Tensor, signal: Tensor) -> float:
    return -float(noise_model.log_likelihood(noisy, signal).mean())
