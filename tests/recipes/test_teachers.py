"""The recipes of other samplers: their closed forms, and that they run, for fewer steps."""

import numpy as np
import pytest
import tifffile
import torch
from torch import nn

from distill import specimen
from recipes import (
    diffusion_missing_pixels_l2,
    diffusion_super_resolution_l2,
    flow_unet_l2,
    next_photon_unet_quantiles,
    super_resolution_unet_l2,
    unmixing_unet_l2,
)
from samplers import NumpySampler
from samplers.testing import check_sampler


def circulant(power: np.ndarray) -> np.ndarray:
    """(Y, X) variance per frequency -> covariance of the pixels (Y * X, Y * X)."""
    height, width = power.shape
    row = np.fft.ifft2(power).real
    y, x = np.divmod(np.arange(height * width), width)
    return row[(y[:, None] - y) % height, (x[:, None] - x) % width]


def posterior(prior: np.ndarray, operator: np.ndarray, noise: float, gap: np.ndarray):
    """Mean and covariance of a Gaussian, given `operator` times it in white noise."""
    cross = prior @ operator.T
    gain = cross @ np.linalg.inv(operator @ cross + noise**2 * np.eye(len(operator)))
    return gain @ gap, prior - gain @ cross.T


def check_moments(draws: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> None:
    """draws (n, pixels)"""
    std = np.sqrt(np.diag(covariance))
    assert np.abs((draws.mean(0) - mean) / std).max() < 5 / np.sqrt(len(draws))
    empirical = np.cov(draws.T)
    allowed = 6 * np.sqrt(2 / len(draws)) * std[:, None] * std
    assert (np.abs(empirical - covariance) < allowed).all()


def test_unmixed_structures_have_the_exact_posterior():
    recipe, rng, (height, width) = unmixing_unet_l2, np.random.default_rng(0), (4, 6)
    noisy = recipe.observed(recipe.MEANS + recipe.structures(1, height, width, rng), rng)
    draws = recipe.unmixed(np.repeat(noisy[:, None], 4000, axis=0), rng)
    prior = np.zeros((3 * 24, 3 * 24))
    for k, power in enumerate(recipe.powers(height, width)):
        prior[24 * k : 24 * (k + 1), 24 * k : 24 * (k + 1)] = circulant(power)
    mix = np.tile(np.eye(24), 3)
    mean, covariance = posterior(prior, mix, recipe.NOISE, noisy.ravel() - recipe.MEANS.sum())
    check_moments((draws - recipe.MEANS).reshape(4000, -1), mean, covariance)
    check_sampler(NumpySampler(recipe.unmixed, out_channels=3))


def test_enlarged_signals_have_the_exact_posterior():
    recipe, rng, (height, width) = super_resolution_unet_l2, np.random.default_rng(0), (3, 4)
    noisy = recipe.observed(recipe.MEAN + recipe.signals(1, 2 * height, 2 * width, rng), rng)
    draws = recipe.enlarged(np.repeat(noisy[:, None], 4000, axis=0), rng)
    pixels = np.eye(48).reshape(48, height, 2, width, 2)
    means = pixels.mean(axis=(2, 4)).reshape(48, 12).T
    prior = circulant(recipe.power(2 * height, 2 * width))
    mean, covariance = posterior(prior, means, recipe.NOISE, noisy.ravel() - recipe.MEAN)
    check_moments((draws - recipe.MEAN).reshape(4000, -1), mean, covariance)
    check_sampler(NumpySampler(recipe.enlarged, scale=2))


@pytest.mark.parametrize("recipe", [unmixing_unet_l2, super_resolution_unet_l2])
def test_other_shapes(recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    recipe.main(out="run", steps=2, size=64)
    assert "100 draws" in capsys.readouterr().out and (tmp_path / "run/report.html").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "files"),
    [
        (flow_unet_l2, ["noisy.tif", "clean.tif"]),
        (next_photon_unet_quantiles, ["noisy.tif", "noisy.tif", "clean.tif"]),
    ],
)
def test_samplers_that_are_trained_first(recipe, files, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    cells = specimen(6, 64)
    tifffile.imwrite("noisy.tif", cells.noisy, metadata={"axes": "TYX"})
    tifffile.imwrite("clean.tif", cells.clean, metadata={"axes": "TYX"})
    recipe.main(*files, out="run", steps=4)
    assert "10 draws" in capsys.readouterr().out
    assert tifffile.imread("run/denoised.tif").shape == (6, 64, 64)


@pytest.mark.slow
def test_a_diffusion_with_physics(tmp_path, monkeypatch):
    pytest.importorskip("deepinv")

    class Smooth(nn.Module):
        def forward(self, x, sigma, **_):
            return nn.functional.avg_pool2d(x, 3, 1, 1)

    torch.manual_seed(0)
    monkeypatch.chdir(tmp_path)
    tifffile.imwrite("noisy.tif", specimen(2, 64).noisy, metadata={"axes": "TYX"})
    diffusion_super_resolution_l2.main("noisy.tif", out="run", denoiser=Smooth(), steps=1)
    assert tifffile.imread("run/enlarged.tif").shape == (2, 128, 128)
    mask = (np.random.default_rng(0).random((64, 64)) > 0.3).astype(np.uint8)
    tifffile.imwrite("mask.tif", mask)
    diffusion_missing_pixels_l2.main("noisy.tif", "mask.tif", out="holes", denoiser=Smooth(), steps=1)
    assert tifffile.imread("holes/filled.tif").shape == (2, 64, 64)
