"""Two images with independent noise, made of one: what learning without clean images lives on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samplers.noise.gaussian import GaussianNoise
from samplers.noise.line import noise_line
from samplers.noise.neighbours import STRONG, neighbour_correlation
from samplers.noise.photons import PhotonNoise, ring_mean

SHARE = 0.5  # of the light: more leaves a noisier target, less a noisier input
FAR = 30.0  # standard deviations: what is farther off is no noise, and counts linearly
WHITE = 0.1  # correlation of neighbouring pixels' residuals, above which noise is not of single pixels
LINES = 0.2  # its difference between rows and columns; at most 0.1 for noise of single pixels, 0.3 for lines
CORRELATED = (
    "the noise of neighbouring pixels is correlated; for lines use HDN3-6 (HDN(active_levels=range(3, 7))), "
    "for patterns StructuredNoiseVAE or JointNoiseVAE"
)


class LightSplit(nn.Module):
    """noisy (B, C, H, W), share -> (an image of that share of the light, one of the rest), in raw counts.

    Both show the signal of the whole; their noise is independent. models: of each channel.
    """

    photon: Tensor

    def __init__(self, models: Sequence[GaussianNoise | PhotonNoise]) -> None:
        super().__init__()
        self.models = list(models)  # they have no weights
        photon = [float(each.gain or 0.0) for each in models]
        self.register_buffer("photon", torch.tensor(photon)[:, None, None], persistent=False)

    @classmethod
    def fit(cls, noisy: Tensor, denoised: Tensor, noise_model: nn.Module | None = None) -> LightSplit:
        """The law of the noise from noisy frames (N, C, H, W) beside their denoised ones, all in raw counts.

        noise_model: one that can be split, and whose line is known; any other is not looked at.
        Raises ValueError for noise that is correlated between pixels.
        """
        integers = bool((noisy == noisy.round()).all())
        gain, offset = (v.flatten().tolist() for v in noise_line(noisy.cpu(), noise_model))
        channels, models = noisy.shape[1], []
        for c in range(channels):
            y, s = noisy[: len(denoised), [c]], denoised[:, [c]]
            if isinstance(noise_model, PhotonNoise) and channels == 1:  # several rarely share one
                model = noise_model
            elif gain[c] * float(s.std()) > 1e-3 * (gain[c] * float(s.mean()) + offset[c]):
                model = PhotonNoise.fit(y, s, gain[c], offset[c], 1.0 if integers else None)
            else:
                model = GaussianNoise(max(gain[c] * float(s.mean()) + offset[c], 1e-12) ** 0.5)
            if _correlated(noisy[:, [c]], (y - s) / model.variance(s).sqrt()):
                raise ValueError(CORRELATED)
            models.append(model)
        return cls(models)

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
        variance = self.variance(
            ring_mean(noisy)
        )  # not of the pixel itself, whose noise a weight must not know
        weight = (variance + self.photon).rsqrt()  # between PSNR's weights, and those of the likelihood
        far = FAR * (variance / (1 - share)).sqrt()  # a hot pixel must not outweigh all others
        error = F.huber_loss(answer / far, second / far, reduction="none") * 2 * far.square()
        return (weight * error).mean() / (weight * variance).mean() * (1 - share)


def _correlated(noisy: Tensor, residual: Tensor) -> bool:
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
