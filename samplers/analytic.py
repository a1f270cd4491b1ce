"""Posteriors with closed forms: the yardstick for a student, which must reach these functionals."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from samplers.base import PosteriorSampler


class LinearGaussianField(PosteriorSampler):
    """Stationary Gaussian field plus white Gaussian noise, on a periodic grid, in raw counts.

    Matern-like power spectrum (1 + (2 pi correlation_length |f|)^2)^-exponent, f in cycles per
    pixel, scaled to a pixel variance of std^2. The posterior is Gaussian and diagonal in the
    Fourier domain: its mean (and median and mode) is the Wiener filter. Any number of spatial axes.
    """

    def __init__(
        self,
        mean: float = 100.0,
        std: float = 20.0,
        correlation_length: float = 3.0,
        noise_std: float = 20.0,
        exponent: float = 2.5,
    ):
        super().__init__()
        self.mean, self.std, self.noise_std = mean, std, noise_std
        self.correlation_length, self.exponent = correlation_length, exponent
        _positive(self, "std", "correlation_length", "noise_std", "exponent")

    def prior(
        self,
        n: int,
        shape: tuple[int, ...],
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """n clean images (n, 1, *shape)."""
        white = torch.randn((n, 1, *shape), generator=generator, device=device)
        return self.mean + self._filter(white, self._spectrum(white).sqrt())

    def observe(self, signal: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """A noisy observation of clean images, shaped like them."""
        white = torch.empty_like(signal).normal_(generator=generator)
        return signal + self.noise_std * white

    def sample(self, noisy: Tensor, n: int = 1) -> Tensor:
        white = torch.randn((n, *noisy.shape), dtype=noisy.dtype, device=noisy.device)
        spread = self._filter(white, self._posterior_spectrum(noisy).sqrt())
        return self.posterior_mean(noisy) + spread

    def posterior_mean(self, noisy: Tensor) -> Tensor:
        """The Wiener filter, shaped like `noisy`."""
        gain = self._posterior_spectrum(noisy) / self.noise_std**2
        return self.mean + self._filter(noisy - self.mean, gain)

    def posterior_std(self, noisy: Tensor) -> Tensor:
        """Standard deviation of each pixel (the same for all), shaped like `noisy`."""
        return torch.full_like(noisy, self._posterior_spectrum(noisy).mean().sqrt().item())

    def _spectrum(self, like: Tensor) -> Tensor:
        """Prior variance of each frequency, shaped like one image; its mean is std^2."""
        axes = [torch.fft.fftfreq(size, dtype=like.dtype, device=like.device) for size in like.shape[2:]]
        squared = sum(f**2 for f in torch.meshgrid(*axes, indexing="ij"))
        power = (1 + (2 * math.pi * self.correlation_length) ** 2 * squared) ** -self.exponent
        return self.std**2 * power / power.mean()

    def _posterior_spectrum(self, like: Tensor) -> Tensor:
        prior, noise = self._spectrum(like), self.noise_std**2
        return prior * noise / (prior + noise)

    @staticmethod
    def _filter(images: Tensor, response: Tensor) -> Tensor:
        """Multiply by a real symmetric `response` in the Fourier domain."""
        axes, size = tuple(range(-response.ndim, 0)), response.shape
        half = torch.fft.rfftn(images, dim=axes) * response[..., : size[-1] // 2 + 1]
        return torch.fft.irfftn(half, s=size, dim=axes)


class SkewedPixels(PosteriorSampler):
    """signal | noisy = location + spread * LogNormal(0, sigma): mean > median > mode.

    g = sigmoid((noisy - center) / width) sets spread * (1 + g) and sigma from sigma_low to
    sigma_high; location = center + shrink * (noisy - center). Pixels are independent.
    """

    def __init__(
        self,
        center: float = 100.0,
        width: float = 20.0,
        shrink: float = 0.7,
        spread: float = 10.0,
        sigma_low: float = 0.5,
        sigma_high: float = 0.9,
    ):
        super().__init__()
        self.center, self.width, self.shrink = center, width, shrink
        self.spread, self.sigma_low, self.sigma_high = spread, sigma_low, sigma_high
        _positive(self, "width", "spread", "sigma_low", "sigma_high")

    def _law(self, noisy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        g = ((noisy - self.center) / self.width).sigmoid()
        location = self.center + self.shrink * (noisy - self.center)
        sigma = self.sigma_low + g * (self.sigma_high - self.sigma_low)
        return location, self.spread * (1 + g), sigma

    def sample(self, noisy: Tensor, n: int = 1) -> Tensor:
        location, scale, sigma = self._law(noisy)
        normal = torch.randn((n, *noisy.shape), dtype=noisy.dtype, device=noisy.device)
        return location + scale * (sigma * normal).exp()

    def mean(self, noisy: Tensor) -> Tensor:
        location, scale, sigma = self._law(noisy)
        return location + scale * (sigma**2 / 2).exp()

    def median(self, noisy: Tensor) -> Tensor:
        location, scale, _ = self._law(noisy)
        return location + scale

    def mode(self, noisy: Tensor) -> Tensor:
        location, scale, sigma = self._law(noisy)
        return location + scale * (-(sigma**2)).exp()

    def quantile(self, noisy: Tensor, q: float) -> Tensor:
        location, scale, sigma = self._law(noisy)
        return location + scale * (sigma * _normal_quantile(q)).exp()

    def variance(self, noisy: Tensor) -> Tensor:
        _, scale, sigma = self._law(noisy)
        return scale**2 * (sigma**2).expm1() * (sigma**2).exp()


class BimodalPixels(PosteriorSampler):
    """signal | noisy = two Gaussians of the same std, `separation` apart around a location.

    location = center + shrink * (noisy - center); the upper one's weight goes from weight_low to
    weight_high with sigmoid((noisy - center) / width). Pixels are independent. While the weight
    stays below one half, mode and median lie in the lower peak and the mean between the two.
    """

    def __init__(
        self,
        center: float = 100.0,
        width: float = 20.0,
        shrink: float = 0.7,
        separation: float = 40.0,
        std: float = 5.0,
        weight_low: float = 0.2,
        weight_high: float = 0.4,
    ):
        super().__init__()
        self.center, self.width, self.shrink = center, width, shrink
        self.separation, self.std = separation, std
        self.weight_low, self.weight_high = weight_low, weight_high
        _positive(self, "width", "separation", "std", "weight_low", "weight_high")
        if separation < 4 * std or max(weight_low, weight_high) >= 1:
            raise ValueError(
                f"BimodalPixels: got separation={separation}, std={std}, weights {weight_low} to "
                f"{weight_high}; needs separation >= 4 * std and weights below 1"
            )

    def _law(self, noisy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(lower peak, upper peak, weight of the upper one)."""
        g = ((noisy - self.center) / self.width).sigmoid()
        location = self.center + self.shrink * (noisy - self.center)
        weight = self.weight_low + g * (self.weight_high - self.weight_low)
        return location - self.separation / 2, location + self.separation / 2, weight

    def sample(self, noisy: Tensor, n: int = 1) -> Tensor:
        lower, upper, weight = self._law(noisy)
        shape, options = (n, *noisy.shape), {"dtype": noisy.dtype, "device": noisy.device}
        peak = torch.where(torch.rand(shape, **options) < weight, upper, lower)
        return peak + self.std * torch.randn(shape, **options)

    def mean(self, noisy: Tensor) -> Tensor:
        lower, upper, weight = self._law(noisy)
        return lower + weight * (upper - lower)

    def median(self, noisy: Tensor) -> Tensor:
        return self.quantile(noisy, 0.5)

    def mode(self, noisy: Tensor) -> Tensor:
        """Highest peak of the density, by mean shift (it contracts e^-8 and faster here)."""
        lower, upper, weight = self._law(noisy.double())
        mode = torch.where(weight > 0.5, upper, lower)
        for _ in range(50):
            share = weight.logit() + (upper - lower) * (mode - (lower + upper) / 2) / self.std**2
            mode = lower + share.sigmoid() * (upper - lower)
        return mode.to(noisy.dtype)

    def quantile(self, noisy: Tensor, q: float) -> Tensor:
        """By bisection in float64, to 1e-12 of the bracket."""
        reach = abs(_normal_quantile(q))
        lower, upper, weight = self._law(noisy.double())
        left, right = lower - reach * self.std, upper + reach * self.std
        for _ in range(60):
            middle = (left + right) / 2
            below = (1 - weight) * self._cdf(middle - lower) + weight * self._cdf(middle - upper)
            left = torch.where(below < q, middle, left)
            right = torch.where(below < q, right, middle)
        return ((left + right) / 2).to(noisy.dtype)

    def variance(self, noisy: Tensor) -> Tensor:
        _, _, weight = self._law(noisy)
        return self.std**2 + weight * (1 - weight) * self.separation**2

    def _cdf(self, distance: Tensor) -> Tensor:
        return torch.special.ndtr(distance / self.std)


def _positive(sampler: PosteriorSampler, *names: str) -> None:
    for name in names:
        value = getattr(sampler, name)
        if not 0 < value < math.inf:
            raise ValueError(f"{type(sampler).__name__}: got {name}={value}; it must be positive and finite")


def _normal_quantile(q: float) -> float:
    if not 0 < q < 1:
        raise ValueError(f"quantile: got q={q}; it must lie strictly between 0 and 1")
    return float(torch.special.ndtri(torch.tensor(q, dtype=torch.float64)))
