"""Posterior samplers: draw clean images from q(signal | noisy)."""

from samplers.analytic import BimodalPixels, LinearGaussianField, SkewedPixels
from samplers.base import PosteriorSampler, posterior_mean, posterior_median, posterior_std
from samplers.function import FunctionSampler
from samplers.hdn import HDN
from samplers.noise import GaussianMixtureNoise, GaussianNoise, NoiseModel

__all__ = [
    "BimodalPixels",
    "FunctionSampler",
    "GaussianMixtureNoise",
    "GaussianNoise",
    "HDN",
    "LinearGaussianField",
    "NoiseModel",
    "PosteriorSampler",
    "SkewedPixels",
    "posterior_mean",
    "posterior_median",
    "posterior_std",
]
