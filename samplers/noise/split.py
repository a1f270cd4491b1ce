"""Two images with independent noise, made of one: what learning without clean images lives on."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samplers.noise.channels import ChannelNoise
from samplers.noise.correlated import CorrelatedNoise, wide_mean
from samplers.noise.gaussian import GaussianNoise
from samplers.noise.line import lines, noise_line
from samplers.noise.neighbours import STRONG, neighbour_correlation
from samplers.noise.photons import PhotonNoise, ring_mean
from students.stabilized import StabilizedUNet

log = logging.getLogger(__name__)
SHARE = 0.5  # of the light: more leaves a noisier target, less a noisier input
FAR = 30.0  # standard deviations: what is farther off is no noise, and counts linearly
WHITE = 0.1  # correlation of neighbouring pixels' residuals, above which noise is not of single pixels
LINES = 0.2  # its difference between rows and columns; at most 0.1 for noise of single pixels, 0.3 for lines
Splittable = GaussianNoise | PhotonNoise
SHIPPED = (
    "the shipped weights denoise it as they are; a noise model of repeats or dark frames is more exact "
    "(distill noise-model fit --kind correlated)"
)


class LightSplit(nn.Module):
    """noisy (B, C, H, W), share -> (an image of that share of the light, one of the rest), in raw counts.

    Both show the signal of the whole; their noise is independent. models: of each channel. line: (gain,
    offset), each (C, 1, 1), if it is not what the models say. guessed: whether correlated noise is estimated
    from the images themselves. That is near enough to denoise by, and not to learn from: what it misses of
    the noise is the same in both parts, and would be learned.
    """

    photon: Tensor

    def __init__(self, models: Sequence[Splittable], line: tuple[Tensor, Tensor] | None = None) -> None:
        super().__init__()
        self.noise = ChannelNoise(models)
        self.line = line or lines(models)
        self.guessed = False
        self.correlated = any(isinstance(each, CorrelatedNoise) for each in models)
        photon = [float(each.gain or 0.0) for each in models]
        self.register_buffer("photon", torch.tensor(photon)[:, None, None], persistent=False)

    @property
    def models(self) -> Sequence[Splittable]:
        return cast(Sequence[Splittable], self.noise.models)

    @classmethod
    @torch.no_grad()
    def fit(cls, noisy: Tensor, noise_model: nn.Module | None = None, advice: str = SHIPPED) -> LightSplit:
        """The law of the noise from noisy frames (N, C, H, W) in raw counts, beside what the shipped weights
        make of them.

        noise_model: one that can be split, and whose line is known, or a ChannelNoise of such; any other is
        not looked at, and one of single pixels is not believed where neighbouring pixels are correlated.
        advice: what the log says of noise that is found to be correlated.
        """
        given = _of_each_channel(noise_model, noisy.shape[1])
        found = [_law(noisy[:, [c]], model, advice) for c, model in enumerate(given)]
        light = cls([law for law, _ in found])
        light.guessed = any(
            isinstance(law, CorrelatedNoise) and law is not model
            for (law, _), model in zip(found, given, strict=True)
        )
        if not light.correlated:
            gains, offsets = zip(*(line for _, line in found), strict=True)
            light.line = torch.cat(gains), torch.cat(offsets)
        return light

    @torch.no_grad()
    def forward(self, noisy: Tensor, share: float = SHARE) -> tuple[Tensor, Tensor]:
        parts = [each.split(noisy[:, [c]], share) for c, each in enumerate(self.models)]
        first, second = (torch.cat(part, dim=1) for part in zip(*parts, strict=True))
        return first, second

    @torch.no_grad()
    def observe(self, signal: Tensor) -> Tensor:
        """What the whole light would show of a signal (B, C, H, W)."""
        return self.noise.sample(signal)

    def variance(self, signal: Tensor) -> Tensor:
        """Of the whole light's noise, (B, C, H, W)."""
        return torch.cat([each.variance(signal[:, [c]]) for c, each in enumerate(self.models)], dim=1)

    def error(self, answer: Tensor, second: Tensor, noisy: Tensor, share: float = SHARE) -> Tensor:
        """The weighted squared error of an answer to the first part on the second; about 1."""
        local = wide_mean(noisy) if self.correlated else ring_mean(noisy)
        variance = self.variance(local)  # not of the pixel itself, whose noise a weight must not know
        weight = (variance + self.photon).rsqrt()  # between PSNR's weights, and those of the likelihood
        far = FAR * (variance / (1 - share)).sqrt()  # a hot pixel must not outweigh all others
        error = F.huber_loss(answer / far, second / far, reduction="none") * 2 * far.square()
        return (weight * error).mean() / (weight * variance).mean() * (1 - share)


def can_be_split(noise_model: nn.Module | None) -> bool:
    models = noise_model.models if isinstance(noise_model, ChannelNoise) else [noise_model]
    return all(isinstance(each, Splittable) for each in models)


def _of_each_channel(noise_model: nn.Module | None, channels: int) -> list[Splittable | None]:
    """What is known of each; None is to be estimated."""
    known = noise_model is not None and can_be_split(noise_model)
    if known and isinstance(noise_model, ChannelNoise):
        return list(cast(Sequence[Splittable], noise_model.of(channels)))
    if known and channels == 1:
        return [cast(Splittable, noise_model)]
    if known:
        log.warning("one noise model for %d channels is not used, for they rarely share one: that of each "
                    "is estimated; fit one to them all (distill noise-model fit)", channels)  # fmt: skip
    return [None] * channels


def _law(noisy: Tensor, model: Splittable | None, advice: str) -> tuple[Splittable, tuple[Tensor, Tensor]]:
    """Of the noise of one channel (N, 1, H, W), and its line."""
    if isinstance(model, CorrelatedNoise):
        return model, lines([model])
    line = noise_line(noisy.cpu(), model)
    gain, offset = (v[0] for v in line)
    denoised = _shipped(noisy, gain, offset).denoise(noisy[:2])
    variance = float(gain * denoised.mean() + offset)
    if isinstance(model, PhotonNoise):
        white: Splittable = model
    elif float(gain * denoised.std()) > 1e-3 * variance:
        step = 1.0 if bool((noisy == noisy.round()).all()) else None
        white = PhotonNoise.fit(noisy[:2], denoised, float(gain), float(offset), step)
    else:
        white = GaussianNoise(max(variance, 1e-12) ** 0.5)
    if not _is_correlated(noisy, (noisy[:2] - denoised) / white.variance(denoised).sqrt()):
        return white, line
    few = noisy[:4]
    noise = CorrelatedNoise.from_denoised(
        few, lambda each: _shipped(noisy, *lines([each]), True).denoise(few)
    )
    log.warning("the noise of neighbouring pixels is correlated (%.2f along y, %.2f along x, std %.3g): %s",
                *noise.neighbours, float(noise.variance(noisy.mean()).sqrt()), advice)  # fmt: skip
    return noise.to(noisy.device), line


def _shipped(noisy: Tensor, gain: Tensor, offset: Tensor, correlated: bool = False) -> StabilizedUNet:
    """The shipped weights for one channel (N, 1, H, W)."""
    student = StabilizedUNet().to(noisy.device)
    mean, std, gain, offset = (v.view(1, 1, 1).to(noisy) for v in (noisy.mean(), noisy.std(), gain, offset))
    student.prepare(noisy, mean, std, gain, offset, correlated)
    student.load_pretrained()
    return student.eval()


def _is_correlated(noisy: Tensor, residual: Tensor) -> bool:
    """Lines show in the residual, along them or as a difference between rows and columns. Blurred noise stays
    in the image, but shows in the frames."""
    near = residual.abs() < 4  # a pixel where the noise law is wrong, or a hot one's halo, must not decide
    residual = torch.where(near, residual - residual[near].mean(), 0.0)
    columns = float((residual[..., 1:] * residual[..., :-1]).mean() / residual.square().mean())
    rows = float((residual[..., 1:, :] * residual[..., :-1, :]).mean() / residual.square().mean())
    if max(columns, rows) > WHITE or abs(columns - rows) > LINES:
        return True
    try:
        return max(neighbour_correlation(noisy.cpu())) > STRONG
    except ValueError:  # too small to tell
        return False
