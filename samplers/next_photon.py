"""Photon counting: a network that predicts where the next photon falls (Krull et al. 2023)."""

import logging
import math
from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn

from samplers.base import PosteriorSampler, evaluating
from samplers.noise.channels import ChannelNoise, estimate_noise
from samplers.noise.gaussian import GaussianNoise
from students.padding import crop, pad_to_multiple

log = logging.getLogger(__name__)
LEAST_SHARE, MOST_SHARE = 0.01, 0.99  # shares of an image's photons that the network sees in training
BEYOND = 1.5  # factor above the brightest image of the training from which draws are reported as unreliable


class NextPhoton(PosteriorSampler):
    """Generative Accumulation of Photons (GAP; Krull et al. 2023, arXiv:2307.06607).

    From the photons of an image the network predicts the distribution of the position of the next photon.
    Photons that are drawn from it and added, again and again, make an image almost free of shot noise, which
    is one draw. The network learns from noisy images alone: it sees a random part of their photons and
    predicts the rest under the cross entropy.

    If the noise is Poisson noise of the signal, draws are exact in the limit of small `growth` and large
    `accumulation`. Otherwise their variance is that of the posterior times (1 - 1 / accumulation) / (1 +
    growth), 0.82 by default. A draw has as much light in total as its image.

    The network has to know images as bright as those that it draws, so train it on images that are
    `accumulation` times brighter than those to denoise. Beyond that its errors add up from pass to pass, and
    a warning is logged. `predictive` needs no brighter images.

    One pass already gives the posterior mean (`predictive`). A student is worth its training for other
    functionals (median, mode, intervals), for a faster network, or for a single file that takes raw counts.

    Args:
        network: network from photons (B, C, *S), whole numbers, to logits (B, C, *S). If it needs sizes that
            are multiples of a number, it states that number in an attribute `multiple`. `WithLevel` makes
            one from a student's network.
        gain: raw counts per photon. Default: estimated from the noisy training images.
        black: raw counts without any light; only together with `gain`.
        channels: number of channels of the images.
        growth: photons that are added between two passes of the network, as a fraction of those in the image.
        accumulation: photons of a finished draw, as a multiple of those of the image. A draw takes
            log(accumulation) / log(1 + growth) passes, 25 by default.
    """

    gain_of: Tensor
    black_of: Tensor
    brightest: Tensor  # most photons per pixel of a training patch; 0 if trained elsewhere

    def __init__(
        self,
        network: nn.Module,
        *,
        gain: float | None = None,
        black: float = 0.0,
        channels: int = 1,
        growth: float = 0.1,
        accumulation: float = 10.0,
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
        self.register_buffer("brightest", torch.zeros(()))
        self._warned = False

    def prepare(self, noisy: Tensor, mean: Tensor, std: Tensor) -> None:
        if self.gain is not None:
            return
        noise = estimate_noise(noisy)
        models = noise.models if isinstance(noise, ChannelNoise) else [noise]
        lines = [(cast(float, m.gain), m.offset or 0.0) for m in models if isinstance(m, GaussianNoise)]
        if len(lines) != self.channels or min(lines)[0] <= 0:
            raise ValueError(
                f"NextPhoton: the noise of these images does not grow with the signal in {self.channels} "
                "channels, so no gain can be estimated; pass gain, in raw counts per photon, and channels"
            )
        for c, (gain, offset) in enumerate(lines):  # variance = gain * (counts - black)
            self.gain_of[c], self.black_of[c] = gain, -offset / gain

    def photons(self, noisy: Tensor) -> Tensor:
        """Raw counts -> photons, rounded to whole numbers of at least 0, in the same shape."""
        return ((noisy.float() - self.black_of) / self.gain_of).round().clamp(min=0)

    def predictive(self, noisy: Tensor) -> Tensor:
        """The posterior mean (B, C, *S) in raw counts, in one pass."""
        photons = self.photons(noisy)
        return self._counts(self._log_shares(photons).exp(), _total(photons))

    def draws(self, noisy: Tensor, n: int) -> Iterator[Tensor]:
        with evaluating(self):
            start = self.photons(noisy)
            self._check_brightness(start)
            shares = self._log_shares(start).exp()  # the first pass is the same for all draws
        for _ in range(n):
            with evaluating(self):
                draw = self._counts(self._accumulated(start, shares), _total(start)).to(noisy.dtype)
            yield draw

    def sample(self, noisy: Tensor, n: int = 1) -> Tensor:
        return torch.stack(list(self.draws(noisy, n)))

    def training_step(self, noisy: Tensor) -> tuple[Tensor, Tensor]:
        """(`cross_entropy`, a draw (B, C, *S) in raw counts made by `sample`)."""
        return self.cross_entropy(noisy), self.sample(noisy)[0]

    def cross_entropy(self, noisy: Tensor) -> Tensor:
        """Cross entropy, in nats per photon, of the photons that the network did not see: a scalar."""
        photons = self.photons(noisy)
        self.brightest = self.brightest.maximum(_level(photons).max())
        width = math.log(MOST_SHARE / LEAST_SHARE)
        share = MOST_SHARE * (-width * torch.rand_like(photons[:, :1, :1, :1])).exp()
        part = torch.binomial(photons, share.expand_as(photons).contiguous())
        rest = photons - part
        return -(rest * self._log_shares(part)).sum() / rest.sum().clamp(min=1)

    def _check_brightness(self, photons: Tensor) -> None:
        """Warns once if a draw takes the network to images that are brighter than those of its training."""
        if self._warned or not self.brightest:
            return
        brightness = float(_level(photons).max()) * self.accumulation
        if brightness <= BEYOND * float(self.brightest):
            return
        self._warned = True
        log.warning(
            "NextPhoton: draws add photons up to %.3g per pixel, but the network was trained up to %.3g, so "
            "the draws are biased; train it on brighter images, or use its posterior mean alone (predictive)",
            brightness, float(self.brightest),
        )  # fmt: skip

    def _accumulated(self, photons: Tensor, shares: Tensor) -> Tensor:
        """Distribution of the next photon after `passes` rounds of adding photons."""
        for _ in range(self.passes):
            photons = photons + torch.poisson(shares * (self.growth * _total(photons)))
            shares = self._log_shares(photons).exp()
        return shares

    def _log_shares(self, photons: Tensor) -> Tensor:
        """log p(the next photon falls on a pixel), normalised over the pixels and channels of each image."""
        padded = pad_to_multiple(photons, getattr(self.network, "multiple", 1))
        logits = crop(self.network(padded).float(), photons.shape[2:])
        return logits.flatten(1).log_softmax(1).view_as(logits)

    def _counts(self, shares: Tensor, total: Tensor) -> Tensor:
        return shares * total * self.gain_of + self.black_of


class WithLevel(nn.Module):
    """Makes a network of photons from an image network.

    The backbone sees the difference of each pixel from the image's mean, relative to that mean, and the
    logarithm of the mean as a further channel. From that it predicts the pixel without its own photons, as a
    Gamma distribution; its mean given the pixel's photons is the answer. So pixels of bright images keep
    their photons, whatever the network predicts, and errors do not grow when photons are added.

    Args:
        backbone: network (B, C + 1, H, W) -> (B, 2 * C, H, W), such as UNet(2, 2) for C = 1: the logarithms
            of the mean relative to the image's mean, and of the shape of the Gamma distribution.
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone, self.multiple = backbone, getattr(backbone, "multiple", 1)

    def forward(self, photons: Tensor) -> Tensor:
        level = _level(photons) + 0.1  # an image may have no photon at all
        plane = level.log().expand(-1, 1, *photons.shape[2:])
        answer = self.backbone(torch.cat([(photons / level).sqrt() - 1, plane / 5], dim=1)).float()
        if answer.shape[1] != 2 * photons.shape[1]:
            raise ValueError(
                f"WithLevel: the backbone gives {answer.shape[1]} channels for {photons.shape[1]} of the "
                "image, must be twice as many; pass such as UNet(2, 2) for one channel"
            )
        mean, shape = answer.clamp(-8, 8).exp().chunk(2, dim=1)
        return ((photons + shape) / (1 + shape / (mean * level))).log()


def _level(photons: Tensor) -> Tensor:
    """Mean number of photons per pixel of each image (B, 1, 1, 1)."""
    return photons.mean(dim=(1, 2, 3), keepdim=True)


def _total(photons: Tensor) -> Tensor:
    """Photons of each image (B, 1, 1, 1); at least 1, so that images without photons work."""
    return photons.sum(dim=(1, 2, 3), keepdim=True).clamp(min=1)
