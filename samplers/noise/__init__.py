"""Noise models p(noisy | signal): what the camera or detector does to the clean image."""

from samplers.noise.autocorrelation import autocorrelation
from samplers.noise.autoregressive import AutoregressiveNoise
from samplers.noise.base import NoiseModel
from samplers.noise.channels import ChannelNoise
from samplers.noise.correlated import CorrelatedNoise
from samplers.noise.gaussian import GaussianNoise
from samplers.noise.gmm import GaussianMixtureNoise
from samplers.noise.histogram import HistogramNoise
from samplers.noise.load import load_noise_model
from samplers.noise.neighbours import neighbour_correlation
from samplers.noise.photons import PhotonNoise

__all__ = [
    "AutoregressiveNoise",
    "ChannelNoise",
    "CorrelatedNoise",
    "GaussianMixtureNoise",
    "GaussianNoise",
    "HistogramNoise",
    "NoiseModel",
    "PhotonNoise",
    "autocorrelation",
    "load_noise_model",
    "neighbour_correlation",
]
