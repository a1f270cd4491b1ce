"""Photon counting: a network that predicts where the next photon falls (Krull et al. 2023)."""

import math
from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn

from samplers.base import PosteriorSampler, evaluating
from samplers.noise.channels import ChannelNoise, estimate_noise
from samplers.noise.gaussian import GaussianNoise
from students.padding import crop, pad_to_multiple

LEAST_SHARE, MOST_SHARE = 0.01, 0.99  # of an image's photons that the network sees in training


class NextPhoton(PosteriorSampler):
    """Generative Accumulation of Photons (GAP; Krull et al. 2023, arXiv:2307.06607).

    The network sees the photons of an image so far and gives the distribution of the next one's place. Added
    again and again from there, photons become an image almost free of shot noise: one draw. It learns from
    noisy images alone, by cross entropy, from a random part of their photons and the rest.

    Where signals are intensities that Poisson statistics made photons of, draws are exact in the limit of
    small `growth` and large `accumulation`. Otherwise their variance is less than the posterior's by the
    factor (1 - 1 / accumulation) / (1 + growth): 0.88 by default. The total of a draw is that of the image.

    What one pass predicts, `predictive`, is the posterior mean already. A student is worth its training for
    other functionals (median, mode, intervals), for a faster network, or for raw counts in one file.

    Args:
        network: photons (B, C, *S), whole numbers -> logits (B, C, *S). If it needs sizes that are multiples
            of a number, it says so in an attribute `multiple`. `WithLevel` makes one of a student's network.
        gain: raw counts per photon. Default: estimated from the noisy training images.
        black: raw counts of no light; only with `gain`.
        channels: of the images.
        growth: photons that are added between two passes of the network, as a share of those there.
        accumulation: photons at the end, as a multiple of the image's. It takes log(accumulation) /
            log(1 + growth) passes: 36 by default. The network meets brighter images than it was trained on.
    """

    gain_of: Tensor
    black_of: Tensor

    def __init__(
        self,
        network: nn.Module,
        *,
        gain: float | None = None,
        black: float = 0.0,
        channels: int = 1,
        growth: float = 0.1,
        accumulation: float = 30.0,
    ) -> None:
        super().__init__()
        if not (0 < growth <= 1 and 1 < accumulation < math.inf and (gain is None or gain > 0)):
            raise ValueError(
                f"NextPhoton: got {gain=}, {growth=}, {accumulation=}; needs gain above 0, growth above 0 "
                "and at most 1, accumulation above 1"
            )
        self.network, self.channels = network, channels
        self.gain, self.black, self.growth, self.accumulation = gain, black, growth, accumulation
        self.passes = math.ceil(math.log(accumulation) / math.log1p(growth))
        self.register_buffer("gain_of", torch.full((channels, 1, 1), gain or 1.0))
        self.register_buffer("black_of", torch.full((channels, 1, 1), float(black)))

    def prepare(self, noisy: Tensor, mean: Tensor, std: Tensor) -> None:
        if self.gain is not None:
            return
        noise = estimate_noise(noisy)
        models = noise.models if isinstance(noise, ChannelNoise) else [noise]
        lines = [(cast(float, m.gain), m.offset or 0.0) for m in models if isinstance(m, GaussianNoise)]
        if len(lines) != self.channels or min(lines)[0] <= 0:
            raise ValueError(
                f"NextPhoton: the noise of these images does not grow with the signal in {self.channels} "
                "channels, so no gain can be told; pass gain, in raw counts per photon, and channels"
            )
        for c, (gain, offset) in enumerate(lines):  # variance = gain * (counts - black)
            self.gain_of[c], self.black_of[c] = gain, -offset / gain

    def photons(self, noisy: Tensor) -> Tensor:
        """Raw counts -> whole numbers of photons."""
        return ((noisy.float() - self.black_of) / self.gain_of).round().clamp(min=0)

    def predictive(self, noisy: Tensor) -> Tensor:
        """The posterior mean (B, C, *S) in raw counts, by one pass."""
        photons = self.photons(noisy)
        return self._counts(self._log_shares(photons).exp(), _total(photons))

    def draws(self, noisy: Tensor, n: int) -> Iterator[Tensor]:
        with evaluating(self):
            start = self.photons(noisy)
            shares = self._log_shares(start).exp()  # the first pass is the same for all draws
        for _ in range(n):
            with evaluating(self):
                draw = self._counts(self._accumulated(start, shares), _total(start)).to(noisy.dtype)
            yield draw

    def sample(self, noisy: Tensor, n: int = 1) -> Tensor:
        return torch.stack(list(self.draws(noisy, n)))

    def training_step(self, noisy: Tensor) -> tuple[Tensor, Tensor]:
        """`cross_entropy`, and a draw, by the passes of `sample`."""
        return self.cross_entropy(noisy), self.sample(noisy)[0]

    def cross_entropy(self, noisy: Tensor) -> Tensor:
        """Nats per photon, of those that were kept from the network: a scalar."""
        photons = self.photons(noisy)
        width = math.log(MOST_SHARE / LEAST_SHARE)
        share = MOST_SHARE * (-width * torch.rand_like(photons[:, :1, :1, :1])).exp()
        part = torch.binomial(photons, share.expand_as(photons).contiguous())
        rest = photons - part
        return -(rest * self._log_shares(part)).sum() / rest.sum().clamp(min=1)

    def _accumulated(self, photons: Tensor, shares: Tensor) -> Tensor:
        """The last distribution of the next photon, after `passes` rounds."""
        for _ in range(self.passes):
            photons = photons + torch.poisson(shares * (self.growth * _total(photons)))
            shares = self._log_shares(photons).exp()
        return shares

    def _log_shares(self, photons: Tensor) -> Tensor:
        """log p(next photon falls there), normalised over each image with all its channels."""
        padded = pad_to_multiple(photons, getattr(self.network, "multiple", 1))
        logits = crop(self.network(padded).float(), photons.shape[2:])
        return logits.flatten(1).log_softmax(1).view_as(logits)

    def _counts(self, shares: Tensor, total: Tensor) -> Tensor:
        return shares * total * self.gain_of + self.black_of


class WithLevel(nn.Module):
    """A network of images as one of photons: it sees how each pixel differs from the image's mean, as a share
    of it, and the logarithm of that mean as a further channel; so it may meet brighter images than it has
    seen.

    backbone: (B, C + 1, H, W) -> (B, C, H, W), such as UNet(in_channels=2) for C = 1.
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone, self.multiple = backbone, getattr(backbone, "multiple", 1)

    def forward(self, photons: Tensor) -> Tensor:
        level = photons.mean(dim=(1, 2, 3), keepdim=True) + 0.1  # of images without any
        plane = level.log().expand(-1, 1, *photons.shape[2:])
        return self.backbone(torch.cat([(photons / level).sqrt() - 1, plane / 5], dim=1))


def _total(photons: Tensor) -> Tensor:
    """Of each image, (B, 1, 1, 1); at least 1, for images without any."""
    return photons.sum(dim=(1, 2, 3), keepdim=True).clamp(min=1)
