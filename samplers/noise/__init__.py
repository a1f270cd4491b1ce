"""Noise models p(noisy | signal): what the camera or detector does to the clean image."""

from samplers.noise.base import NoiseModel
from samplers.noise.gaussian import GaussianNoise
from samplers.noise.gmm import GaussianMixtureNoise

__all__ = ["GaussianMixtureNoise", "GaussianNoise", "NoiseModel"]
