"""Two images with independent noise, made of one: what learning without clean images lives on."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
        self.models = cast(Sequence[Splittable], nn.ModuleList(models))
        self.line = line or lines(models)
        self.guessed = False
        self.correlated = any(isinstance(each, CorrelatedNoise) for each in models)
        photon = [float(each.gain or 0.0) for each in models]
        self.register_buffer("photon", torch.tensor(photon)[:, None, None], persistent=False)

    @classmethod
    @torch.no_grad()
    def fit(cls, noisy: Tensor, noise_model: nn.Module | None = None) -> LightSplit:
        """The law of the noise from noisy frames (N, C, H, W) in raw counts, beside what the shipped weights
        make of them.

        noise_model: one that can be split, and whose line is known; any other is not looked at, and one of
        single pixels is not believed where neighbouring pixels are correlated.
        """
        model = noise_model if isinstance(noise_model, Splittable) else None
        model = model if noisy.shape[1] == 1 else None  # several channels rarely share one
        if isinstance(model, CorrelatedNoise):
            return cls([model])
        line = noise_line(noisy.cpu(), model)
        models = [_law(noisy[:, [c]], line[0][c], line[1][c], model) for c in range(noisy.shape[1])]
        light = cls(models)
        light.guessed = light.correlated
        return light if light.correlated else cls(models, line)

    @torch.no_grad()
    def forward(self, noisy: Tensor, share: float = SHARE) -> tuple[Tensor, Tensor]:
        parts = [each.split(noisy[:, [c]], share) for c, each in enumerate(self.models)]
        first, second = (torch.cat(part, dim=1) for part in zip(*parts, strict=True))
        return first, second

    @torch.no_grad()
    def observe(self, signal: Tensor) -> Tensor:
        """What the whole light would show of a signal (B, C, H, W)."""
        return torch.cat([each.sample(signal[:, [c]]) for c, each in enumerate(self.models)], dim=1)

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


def _law(noisy: Tensor, gain: Tensor, offset: Tensor, model: Splittable | None) -> Splittable:
    """Of the noise of one channel (N, 1, H, W) on a known line."""
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
        return white
    few = noisy[:4]
    noise = CorrelatedNoise.from_denoised(
        few, lambda each: _shipped(noisy, *lines([each]), True).denoise(few)
    )
    log.warning("the noise of neighbouring pixels is correlated (%.2f along y, %.2f along x, std %.3g): "
                "the shipped weights denoise it as they are; a noise model of repeats or dark frames is "
                "more exact (distill noise-model fit --kind correlated)",
                *noise.neighbours, float(noise.variance(noisy.mean()).sqrt()))  # fmt: skip
    return noise.to(noisy.device)


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
