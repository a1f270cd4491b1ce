"""Noise that differs between channels, like the gains and black levels of several cameras or detectors."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from io import BytesIO
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from samplers.noise import npz
from samplers.noise.base import NoiseModel, unchanged_by
from samplers.noise.gaussian import GaussianNoise

log = logging.getLogger(__name__)
PREFIX = "channel_"  # start of the keys in a file; each key holds the file of one channel as bytes
FACTOR = 4.0  # ratio of noise stds from which on channels should not share a network


class ChannelNoise(NoiseModel):
    """One noise model, of any kind, for each channel of images (..., C, H, W), in their order."""

    def __init__(self, models: Sequence[NoiseModel]) -> None:
        super().__init__()
        if not models:
            raise ValueError("ChannelNoise: got no models; pass one for each channel")
        self.models = cast(Sequence[NoiseModel], torch.nn.ModuleList(models))
        self.isotropic, self.mirrors = unchanged_by(models)

    def log_likelihood(self, noisy: Tensor, signal: Tensor) -> Tensor:
        return self._each(lambda model, *images: model.log_likelihood(*images), noisy, signal)

    def sample(self, signal: Tensor) -> Tensor:
        return self._each(lambda model, image: model.sample(image), signal)

    def _each(self, what: Callable[..., Tensor], *images: Tensor) -> Tensor:
        """Applies `what` of each model to its own channel, and joins the results."""
        parts = [
            what(model, *(each[..., c : c + 1, :, :] for each in images))
            for c, model in enumerate(self.of(images[0].shape[-3]))
        ]
        return torch.cat(parts, dim=-3)

    def of(self, channels: int) -> Sequence[NoiseModel]:
        """The models of images with that many channels; ValueError if their number differs."""
        if channels != len(self.models):
            raise ValueError(
                f"ChannelNoise: got images of {channels} channels, has noise models of {len(self.models)}; "
                "fit one to the same channels (distill noise-model fit)"
            )
        return self.models

    def write(self, path: npz.NoiseFile) -> None:
        """Writes the .npz file that `load_noise_model` reads; it holds the file of each channel as bytes."""
        files = {}
        for c, model in enumerate(self.models):
            cast(Any, model).write(file := BytesIO())  # all built-in models have it
            files[f"{PREFIX}{c}"] = np.frombuffer(file.getvalue(), np.uint8)
        npz.write(path, **files)


def estimate_noise(frames: Tensor) -> GaussianNoise | ChannelNoise:
    """`GaussianNoise.estimate` of noisy frames (N, C, H, W), for each channel by itself.

    Returns a ChannelNoise if there are several channels. ValueError names the channel whose noise cannot be
    estimated.
    """
    if frames.shape[1] == 1:
        return GaussianNoise.estimate(frames)
    return ChannelNoise([_estimate(frames, c) for c in range(frames.shape[1])])


def _estimate(frames: Tensor, channel: int) -> GaussianNoise:
    try:
        return GaussianNoise.estimate(frames[:, [channel]])
    except ValueError as error:
        raise ValueError(f"channel {channel}: {error}") from None


def warn_of_unlike_channels(frames: Tensor, noise_model: NoiseModel | None) -> None:
    """Warns if the noise of the channels of frames (N, C, H, W) differs by more than FACTOR."""
    try:
        noise = estimate_noise(frames)
    except ValueError:  # too small, or without noise: the code that needs the estimate reports it
        return
    if not isinstance(noise, ChannelNoise):
        return
    levels = frames.mean((0, 2, 3))
    stds = [
        float(cast(GaussianNoise, each).variance(level).sqrt())
        for each, level in zip(noise.models, levels, strict=True)
    ]
    if max(stds) <= FACTOR * min(stds):
        return
    shared = noise_model is not None and not isinstance(noise_model, ChannelNoise)
    log.warning(
        "the noise of the channels differs: its std is %s counts; %srun the channels apart, one at a time",
        ", ".join(f"{std:.3g}" for std in stds),
        "one noise model for all fits none: pass one of each (distill noise-model fit), or "
        if shared
        else "",
    )
