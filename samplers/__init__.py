"""Posterior samplers: draw clean images from q(signal | noisy)."""

from samplers.adapters import DiffusionSampler, Ensemble, MonteCarloDropout
from samplers.analytic import BimodalPixels, LinearGaussianField, SkewedPixels, ThreeScenes
from samplers.base import PosteriorSampler, posterior_mean, posterior_median, posterior_std
from samplers.cached import CachedDraws
from samplers.divnoising import DivNoising
from samplers.flow import FlowMatching, WithTime
from samplers.function import FunctionSampler, NumpySampler
from samplers.hdn import HDN, LIGHT
from samplers.next_photon import NextPhoton, WithLevel
from samplers.noise import (
    AutoregressiveNoise,
    ChannelNoise,
    CorrelatedNoise,
    GaussianMixtureNoise,
    GaussianNoise,
    HistogramNoise,
    NoiseModel,
    PhotonNoise,
    load_noise_model,
    neighbour_correlation,
)
from samplers.one_pass import OnePassSampler
from samplers.stabilized import StabilizedSampler
from samplers.structured import JointNoiseVAE, StructuredNoiseVAE

__all__ = [
    "HDN",
    "LIGHT",
    "AutoregressiveNoise",
    "BimodalPixels",
    "CachedDraws",
    "ChannelNoise",
    "CorrelatedNoise",
    "DiffusionSampler",
    "DivNoising",
    "Ensemble",
    "FlowMatching",
    "FunctionSampler",
    "GaussianMixtureNoise",
    "GaussianNoise",
    "HistogramNoise",
    "JointNoiseVAE",
    "LinearGaussianField",
    "MonteCarloDropout",
    "NextPhoton",
    "NoiseModel",
    "NumpySampler",
    "OnePassSampler",
    "PhotonNoise",
    "PosteriorSampler",
    "SkewedPixels",
    "StabilizedSampler",
    "StructuredNoiseVAE",
    "ThreeScenes",
    "WithLevel",
    "WithTime",
    "load_noise_model",
    "neighbour_correlation",
    "posterior_mean",
    "posterior_median",
    "posterior_std",
]
