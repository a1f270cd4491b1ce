"""Noise that is correlated between pixels is told where a sampler takes each pixel's for independent."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from distill import specimen
from samplers import HDN, DivNoising, GaussianNoise
from samplers.noise.split import LightSplit

SIZES = {HDN: dict(levels=1, latents=2, filters=4, blocks=1), DivNoising: dict(depth=1, filters=4, latents=2)}


def prepared(sampler, images) -> None:
    noisy = torch.from_numpy(images.astype("f4"))[:, None]
    std, mean = torch.std_mean(noisy)
    sampler.prepare(noisy, mean.view(1, 1, 1), std.view(1, 1, 1))


@pytest.mark.parametrize("kind", SIZES)
def test_lines_and_blurred_noise_are_told_with_the_sampler_that_fits(kind, caplog):
    made = specimen(3, 128)
    for images in (
        specimen(3, 128, noise="lines").noisy,
        gaussian_filter(made.noisy.astype("f4"), (0, 0.7, 0.7)),
    ):
        caplog.clear()
        prepared(kind(**SIZES[kind]), images)
        (line,) = [each.message for each in caplog.records]
        assert "neighbouring pixels is correlated" in line and kind.__name__ in line
        assert "StabilizedSampler" in line and "JointNoiseVAE" in line
    caplog.clear()
    prepared(kind(**SIZES[kind]), made.noisy)
    prepared(kind(GaussianNoise(5.0), **SIZES[kind]), specimen(3, 128, noise="lines").noisy)
    assert not caplog.records  # noise of single pixels; and a noise model that the user answers for


@pytest.mark.parametrize("photons", [300, 1000, 5000])
def test_a_texture_that_fills_the_image_is_not_taken_for_noise(photons):
    rng = np.random.default_rng(0)
    texture = gaussian_filter(rng.normal(size=(256, 256)), 1.0)
    signal = photons * (texture - texture.min()) / np.ptp(texture)
    noisy = (rng.poisson(signal) + rng.normal(0, 2, signal.shape)).astype("f4")
    light = LightSplit.fit(torch.from_numpy(noisy)[None, None])
    assert not light.correlated
    line = light.variance(torch.full((1, 1, 1, 1), float(signal.mean()))).item()
    assert line < 3 * (signal.mean() + 4)
