"""Samplers of posteriors with closed forms, against which a student's answers can be checked exactly."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from samplers.base import PosteriorSampler


class LinearGaussianField(PosteriorSampler):
    """Stationary Gaussian field plus white Gaussian noise, on a periodic grid, in raw counts.

    The field has the Matern-like power spectrum (1 + (2 pi correlation_length |f|)^2)^-exponent, with f
    in cycles per pixel, scaled to a pixel variance of std^2. The posterior is Gaussian and diagonal in
    the Fourier domain; its mean, median and mode are the Wiener filter. Images may have any number of
    spatial axes.

    Args:
        mean: mean of the field in raw counts.
        std: standard deviation of the field in raw counts.
        correlation_length: correlation length of the field in pixels.
        noise_std: standard deviation of the noise in raw counts.
        exponent: exponent of the power spectrum; larger values give smoother fields.
        dims: number of spatial axes that `train` gives it, 2 for images and 3 for volumes.
    """

    def __init__(
        self,
        mean: float = 100.0,
        std: float = 20.0,
        correlation_length: float = 3.0,
        noise_std: float = 20.0,
        exponent: float = 2.5,
        dims: int = 2,
    ):
        super().__init__()
        self.mean, self.std, self.noise_std = mean, std, noise_std
        self.correlation_length, self.exponent, self.dims = correlation_length, exponent, dims
        _positive(self, "std", "correlation_length", "noise_std", "exponent")

    def prior(
        self,
        n: int,
        shape: tuple[int, ...],
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Draws n clean images (n, 1, *shape) in raw counts."""
        white = torch.randn((n, 1, *shape), generator=generator, device=device)
        return self.mean + self._filter(white, self._spectrum(white).sqrt())

    def observe(self, signal: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Adds noise to clean images; returns one observation of the same shape."""
        white = torch.empty_like(signal).normal_(generator=generator)
        return signal + self.noise_std * white

    def sample(self, noisy: Tensor, n: int = 1) -> Tensor:
        white = torch.randn((n, *noisy.shape), dtype=noisy.dtype, device=noisy.device)
        spread = self._filter(white, self._posterior_spectrum(noisy).sqrt())
        return self.posterior_mean(noisy) + spread

    def posterior_mean(self, noisy: Tensor) -> Tensor:
        """The Wiener filter of `noisy`, in the same shape and in raw counts."""
        gain = self._posterior_spectrum(noisy) / self.noise_std**2
        return self.mean + self._filter(noisy - self.mean, gain)

    def posterior_std(self, noisy: Tensor) -> Tensor:
        """Posterior standard deviation in raw counts, shaped like `noisy`; it is the same for all pixels."""
        return torch.full_like(noisy, self._posterior_spectrum(noisy).mean().sqrt().item())

    def _spectrum(self, like: Tensor) -> Tensor:
        """Prior variance of each frequency (*S); its mean is std^2."""
        axes = [torch.fft.fftfreq(size, dtype=like.dtype, device=like.device) for size in like.shape[2:]]
        squared = sum(f**2 for f in torch.meshgrid(*axes, indexing="ij"))
        power = (1 + (2 * math.pi * self.correlation_length) ** 2 * squared) ** -self.exponent
        return self.std**2 * power / power.mean()

    def _posterior_spectrum(self, like: Tensor) -> Tensor:
        prior, noise = self._spectrum(like), self.noise_std**2
        return prior * noise / (prior + noise)

    @staticmethod
    def _filter(images: Tensor, response: Tensor) -> Tensor:
        """Multiplies by a real symmetric `response` in the Fourier domain."""
        axes, size = tuple(range(-response.ndim, 0)), response.shape
        half = torch.fft.rfftn(images, dim=axes) * response[..., : size[-1] // 2 + 1]
        return torch.fft.irfftn(half, s=size, dim=axes)


class SkewedPixels(PosteriorSampler):
    """Independent pixels with a shifted log-normal posterior, whose mean > median > mode.

    signal | noisy = location + spread * (1 + g) * LogNormal(0, sigma), where g = sigmoid((noisy - center) /
    width), location = center + shrink * (noisy - center), and sigma = sigma_low + g * (sigma_high -
    sigma_low). `center`, `width` and `spread` are in raw counts.
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
    """Independent pixels whose posterior is a mixture of two Gaussians with the same std.

    The two peaks lie `separation` apart around location = center + shrink * (noisy - center). The weight of
    the upper peak rises from weight_low to weight_high with sigmoid((noisy - center) / width). While that
    weight is below one half, mode and median lie in the lower peak and the mean between the two. `center`,
    `width`, `separation` and `std` are in raw counts.
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
        """(lower peak, upper peak, weight of the upper peak), each shaped like `noisy`."""
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
        """Highest peak of the density, found by mean shift, which contracts by e^-8 or faster here."""
        lower, upper, weight = self._law(noisy.double())
        mode = torch.where(weight > 0.5, upper, lower)
        for _ in range(50):
            share = weight.logit() + (upper - lower) * (mode - (lower + upper) / 2) / self.std**2
            mode = lower + share.sigmoid() * (upper - lower)
        return mode.to(noisy.dtype)

    def quantile(self, noisy: Tensor, q: float) -> Tensor:
        """The q-quantile, found by bisection in float64 to 1e-12 of the bracket."""
        z = abs(_normal_quantile(q))
        lower, upper, weight = self._law(noisy.double())
        left, right = lower - z * self.std, upper + z * self.std
        for _ in range(60):
            midpoint = (left + right) / 2
            cdf = (1 - weight) * self._cdf(midpoint - lower) + weight * self._cdf(midpoint - upper)
            left = torch.where(cdf < q, midpoint, left)
            right = torch.where(cdf < q, right, midpoint)
        return ((left + right) / 2).to(noisy.dtype)

    def variance(self, noisy: Tensor) -> Tensor:
        _, _, weight = self._law(noisy)
        return self.std**2 + weight * (1 - weight) * self.separation**2

    def _cdf(self, distance: Tensor) -> Tensor:
        return torch.special.ndtr(distance / self.std)


class ThreeScenes(PosteriorSampler):
    """One of three whole images: the likeliest is not made of the likeliest values of its pixels.

    signal | noisy = location + separation * offset + std * N(0, 1), where location = center + shrink *
    (noisy - center). A draw is of the same scene in all of its pixels, with probabilities 0.4, 0.3, 0.3. The
    offset of bright pixels (noisy > center) is 0, 1, 1 in the three scenes, that of others 0, 1, -1. So in
    every patch with pixels of both kinds the joint mode has the offsets (0, 0), while the modes of single
    pixels have (1, 0), which no scene has. `center`, `separation` and `std` are in raw counts.
    """

    weights = (0.4, 0.3, 0.3)
    bright, dark = (0.0, 1.0, 1.0), (0.0, 1.0, -1.0)  # offsets in each scene

    def __init__(
        self, center: float = 100.0, shrink: float = 0.7, separation: float = 40.0, std: float = 4.0
    ) -> None:
        super().__init__()
        self.center, self.shrink, self.separation, self.std = center, shrink, separation, std
        _positive(self, "separation", "std")
        if separation < 8 * std:
            raise ValueError(
                f"ThreeScenes: got separation={separation}, std={std}; needs separation >= 8 * std, where "
                "the scenes do not shift each other's peaks"
            )

    def sample(self, noisy: Tensor, n: int = 1) -> Tensor:
        chosen = torch.multinomial(noisy.new_tensor(self.weights), n * len(noisy), replacement=True)
        offsets = noisy.new_tensor([self.bright, self.dark])[:, chosen]  # (2, n * B)
        bright, dark = offsets.reshape(2, n, len(noisy), *[1] * (noisy.ndim - 1))
        noise = torch.randn((n, *noisy.shape), dtype=noisy.dtype, device=noisy.device)
        signal = self._location(noisy) + self.separation * torch.where(noisy > self.center, bright, dark)
        return signal + self.std * noise

    def mean(self, noisy: Tensor) -> Tensor:
        return self._location(noisy) + 0.6 * self.separation * (noisy > self.center)

    def mode(self, noisy: Tensor) -> Tensor:
        """The mode of each pixel by itself."""
        return self._location(noisy) + self.separation * (noisy > self.center)

    def joint_mode(self, noisy: Tensor) -> Tensor:
        """The likeliest scene."""
        return self._location(noisy)

    def _location(self, noisy: Tensor) -> Tensor:
        return self.center + self.shrink * (noisy - self.center)


def _positive(sampler: PosteriorSampler, *names: str) -> None:
    for name in names:
        value = getattr(sampler, name)
        if not 0 < value < math.inf:
            raise ValueError(f"{type(sampler).__name__}: got {name}={value}; it must be positive and finite")


def _normal_quantile(q: float) -> float:
    if not 0 < q < 1:
        raise ValueError(f"quantile: got q={q}; it must lie strictly between 0 and 1")
    return float(torch.special.ndtri(torch.tensor(q, dtype=torch.float64)))
