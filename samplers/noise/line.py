"""The noise line of every channel, variance = gain * signal + offset."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from samplers.noise.gaussian import GaussianNoise
from samplers.noise.photons import PhotonNoise


def noise_line(frames: Tensor, noise_model: nn.Module | None = None) -> tuple[Tensor, Tensor]:
    """(gain, offset) of the noise of each channel, each (C, 1, 1), in raw counts.

    The line of the noise model is used for images of one channel, if it has one. Otherwise the line of each
    channel is estimated, because several channels rarely share one. Raises ValueError like
    `GaussianNoise.estimate`.

    Args:
        frames: noisy frames (N, C, H, W).
        noise_model: noise model of the images. Default: none.
    """
    channels = frames.shape[1]
    if channels == 1 and isinstance(noise_model, GaussianNoise | PhotonNoise):
        return lines([noise_model])
    return lines([GaussianNoise.estimate(frames[:, [c]]) for c in range(channels)])


def lines(models: Sequence[GaussianNoise | PhotonNoise]) -> tuple[Tensor, Tensor]:
    """(gain, offset), each (C, 1, 1), of one model per channel."""
    gain, offset = torch.tensor([_line_of(each) for each in models]).T[:, :, None, None]
    return gain, offset


def _line_of(noise_model: GaussianNoise | PhotonNoise) -> tuple[float, float]:
    if isinstance(noise_model, GaussianNoise) and noise_model.std is not None:
        return 0.0, noise_model.std**2
    return float(noise_model.gain or 0.0), float(noise_model.offset or 0.0)
