"""Photon-counting noise: pulses of single photons, amplified, with the read noise of the electronics."""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from samplers.noise import npz
from samplers.noise.base import NoiseModel

_ARGUMENTS = ("gain", "offset", "read_noise", "shape", "step")
_FEW = 6.0  # gains above which the Gaussian limit of many pulses is accurate enough
_PULSES = 16  # largest number of pulses that light of fewer than _FEW gains gives
_DARKEST = 0.02  # least expected number of pulses; at 0 the likelihood would have no slope
_LEAST_ORDER = 0.1  # of a Gamma distribution; samples of smaller ones are often 0 as 32-bit floats
_RING = torch.ones(1, 1, 5, 5)
_RING[..., 2, 2] = 0


class PhotonNoise(NoiseModel):
    """Black level + pulses + N(0, read_noise^2), with a Poisson number of pulses of Gamma-distributed sizes.

    The variance is the line gain * signal + offset, like that of GaussianNoise. Unlike GaussianNoise, this
    model is accurate at one photon per pixel, where noise is skewed, and can `split` an image by photons.

    Args:
        gain: raw counts per photon, above 0.
        offset: variance at a signal of 0, in counts squared; it may be negative.
        read_noise: standard deviation of the read noise in raw counts, including that of rounding.
        shape: shape of the Gamma distribution of pulse sizes, about 1 to 6 for a photomultiplier and
            infinite for a camera.
        step: spacing of the recorded values (1 for integers). Default: continuous values.
    """

    def __init__(
        self,
        gain: float,
        offset: float,
        read_noise: float,
        shape: float = math.inf,
        step: float | None = None,
    ) -> None:
        super().__init__()
        if not (0 < gain < math.inf and math.isfinite(offset) and 0 < read_noise < math.inf and shape > 0):
            raise ValueError(
                f"PhotonNoise: got {gain=}, {offset=}, {read_noise=}, {shape=}; all but offset must be "
                "above 0"
            )
        self.gain, self.offset, self.read_noise, self.shape, self.step = gain, offset, read_noise, shape, step
        self.black = (read_noise**2 - offset) / gain  # raw counts without any photon
        self.pulse = gain / (1 + 1 / shape)  # mean size, for which the variance is gain * signal

    def variance(self, signal: Tensor) -> Tensor:
        """Noise variance at `signal`, in counts squared."""
        return self.gain * (signal.float() - self.black).clamp(min=0) + self.read_noise**2

    def log_likelihood(self, noisy: Tensor, signal: Tensor) -> Tensor:
        with torch.autocast(signal.device.type, enabled=False):
            noisy, signal = noisy.float(), signal.float()
            variance = self.variance(signal)
            gaussian = -0.5 * ((noisy - signal) ** 2 / variance + (2 * math.pi * variance).log())
            rate = ((signal - self.black) / self.pulse).clamp(min=_DARKEST)
            dark = (rate < _FEW).detach() & (noisy - self.black < 2 * _FEW * self.gain)
            if not dark.any():
                return gaussian
            n = torch.arange(_PULSES + 1.0, device=signal.device)
            prior = n * rate[..., None].log() - rate[..., None] - torch.lgamma(n + 1)
            pulses = (self._given_pulses(noisy - self.black) + prior).logsumexp(-1)
            # Below the black level the rate is constant, so a Gaussian term provides the slope there.
            darkest = self.black + _DARKEST * self.pulse
            below = 0.5 * ((signal - darkest).clamp(max=0) / self.read_noise) ** 2
            return torch.where(dark, pulses - below, gaussian)

    def sample(self, signal: Tensor) -> Tensor:
        rate = ((signal.float() - self.black) / self.pulse).clamp(min=0)
        pulses = torch.poisson(rate)
        counts = self.pulse * pulses
        if self.shape < math.inf:
            counts = _gamma(self.shape * pulses) * self.pulse / self.shape
        noisy = self.black + counts + self.read_noise * torch.randn_like(counts)
        return noisy if self.step is None else (noisy / self.step).round() * self.step

    def split(self, noisy: Tensor, share: float) -> tuple[Tensor, Tensor]:
        """Splits an image into two noisy images of the same signal with independent noise, each (B, C, H, W).

        The first has `share` of the light, the second the rest, both scaled to the brightness of the whole;
        their gains are gain / share and gain / (1 - share). The pulses of a count are drawn from their
        posterior at the rate of the neighbouring pixels, and each is assigned to one image at random. The
        read noise is divided by adding and subtracting one noise (Pang et al. 2021, arXiv:2106.02087).
        """
        if self.step is not None:  # from integer values a network could infer the other part
            noisy = noisy + self.step * (torch.rand_like(noisy) - 0.5)
        above = noisy - self.black
        rate = ((ring_mean(noisy) - self.black) / self.pulse).clamp(min=0.03)
        exchange = math.sqrt(share * (1 - share)) * self.read_noise * torch.randn_like(above)
        photons = above / self.gain - 1  # a Beta share has the moments of a binomial's
        photons = photons.clamp(min=_LEAST_ORDER / min(share, 1 - share))
        first, second = _gamma(share * photons), _gamma((1 - share) * photons)
        part = above * first / (first + second).clamp(min=1e-37)
        dark = (above < _FEW * self.gain) & (rate < _FEW)
        part = torch.where(dark, self._dark_part(above, rate, share), part) + exchange
        return part / share + self.black, (above - part) / (1 - share) + self.black

    def _dark_part(self, above: Tensor, rate: Tensor, share: float) -> Tensor:
        """The first image's part of few pulses, whose number and sizes are drawn from their posterior."""
        n = torch.arange(_PULSES + 1.0, device=above.device)
        posterior = self._given_pulses(above) + n * rate[..., None].log() - torch.lgamma(n + 1)
        gumbel = -torch.log(-torch.log(torch.rand_like(posterior).clamp(1e-12, 1 - 1e-7)))
        pulses = (posterior + gumbel).argmax(-1).float()
        spread = pulses * self.pulse**2 / self.shape
        read = self.read_noise**2
        light = self.pulse * pulses + (above - self.pulse * pulses) * spread / (spread + read)
        light = light + (spread * read / (spread + read)).sqrt() * torch.randn_like(above)
        light = torch.where(pulses > 0, light.clamp(min=0), torch.zeros_like(light))  # the rest is read noise
        mine = torch.binomial(pulses, torch.full_like(pulses, share))
        if self.shape < math.inf:
            first, second = _gamma(self.shape * mine), _gamma(self.shape * (pulses - mine))
            mine = first / (first + second).clamp(min=1e-37)
        else:
            mine = mine / pulses.clamp(min=1)
        return light * mine + share * (above - light)

    def _given_pulses(self, above: Tensor) -> Tensor:
        """log p(counts above black | n pulses), with n = 0 to _PULSES in the last dimension.

        It is a Gamma density of matched moments for little read noise, because pulse sizes are skewed, and a
        Gaussian density otherwise.
        """
        n = torch.arange(1.0, _PULSES + 1, device=above.device)
        mean, variance = self.pulse * n, self.pulse**2 * n / self.shape + self.read_noise**2
        above = above[..., None]
        if self.read_noise < self.pulse / 2 and self.shape < math.inf:
            order, scale = mean**2 / variance, variance / mean
            pulses = (order - 1) * above.clamp(min=1e-3).log() - above / scale - torch.lgamma(order)
            pulses = (pulses - order * scale.log()).where(above > 0, torch.full_like(above, -1e9))
        else:
            pulses = -0.5 * (above - mean) ** 2 / variance - 0.5 * (2 * math.pi * variance).log()
        none = (-0.5 * (above / self.read_noise) ** 2).clamp(min=-50) - math.log(
            self.read_noise * math.sqrt(2 * math.pi)
        )
        return torch.cat([none, pulses], -1)

    @classmethod
    def fit(
        cls, noisy: Tensor, denoised: Tensor, gain: float, offset: float, step: float | None = None,
        pixels: int = 30_000, seed: int = 0,
    ) -> PhotonNoise:  # fmt: skip
        """Fits read_noise and shape for a known line, by the likelihood of dark pixels."""
        draw = torch.Generator().manual_seed(seed)
        pick = torch.randperm(noisy.numel(), generator=draw)[:pixels]
        y, s = (v.detach().float().cpu().flatten()[pick] for v in (noisy, denoised))
        if step is not None:
            y = y + step * (torch.rand(len(y), generator=draw) - 0.5)
        darkest = float(s.quantile(0.01))
        dark = s <= min(float(s.quantile(0.9)), darkest + 8 * gain)
        floor = max(gain * darkest + offset, 0.09 * (step or 0.0) ** 2, 1e-4 * gain**2)
        least = max(0.3 * (step or 0.0), 0.1 * math.sqrt(floor))
        reads = torch.logspace(math.log10(least), math.log10(max(1.07 * least, 1.1 * math.sqrt(floor))), 12)
        models = [cls(gain, offset, float(read), shape, step)
                  for shape, read in itertools.product((1.5, 3.0, 6.0, math.inf), reads)]  # fmt: skip
        return max(models, key=lambda model: float(model.log_likelihood(y[dark], s[dark]).mean()))

    @classmethod
    def read(cls, path: npz.NoiseFile) -> PhotonNoise:
        """Reads the model from an .npz file of `write`. ValueError if the file is not one."""
        arrays = npz.read(path, ("gain", "offset", "read_noise", "shape"), ["step"])
        try:
            return cls(**{key: value.item() for key, value in arrays.items()})
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: not a readable model of photon noise ({error})") from error

    def write(self, path: npz.NoiseFile) -> None:
        npz.write(path, **{k: v for k in _ARGUMENTS if (v := getattr(self, k)) is not None})


def ring_mean(images: Tensor) -> Tensor:
    """Mean of each pixel's 24 neighbours, (B, C, H, W), which is independent of the pixel's own noise."""
    flat = images.float().flatten(0, 1).unsqueeze(1)
    with torch.autocast(images.device.type, enabled=False):  # bf16 would round raw counts
        mode = "reflect" if min(flat.shape[2:]) > 2 else "replicate"
        mean = F.conv2d(F.pad(flat, (2, 2, 2, 2), mode), _RING.to(flat) / 24)
    return mean.view_as(images)


def _gamma(order: Tensor) -> Tensor:
    """Samples of Gamma(order, 1), and 0 where order is 0."""
    draw = torch._standard_gamma(order.clamp(min=_LEAST_ORDER))  # pyright: ignore[reportPrivateImportUsage]: as Gamma does
    return draw * (order > 0)
