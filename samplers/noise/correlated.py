"""Gaussian noise with the same correlation between pixels everywhere, such as lines or interpolated noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from samplers.noise import npz
from samplers.noise.gaussian import GaussianNoise

LEAST_POWER = 0.01  # relative to the mean; without it a frequency without noise has infinite weight
REACH = 32  # largest distance in px for which correlation is estimated
SLIGHTEST = 0.03  # smallest correlation that counts as one
_WINDOW, _WIDE, _LOCAL = 128, 31, 9  # window sides in px: spectrum, local mean, local variance
_MOVED = 0.2, 0.15  # most that denoised repeats may differ by, of their variance and of that of the noise
_FIXED = 0.8  # least variance that differs between repeats; if more does not, noise has a fixed pattern
_BINS, _ALIKE = 20, 50  # brightness bins; number of correlated pixels that count as one independent pixel


class CorrelatedNoise(GaussianNoise):
    """N(noisy; signal, variance = gain * signal + offset), correlated between pixels, in raw counts.

    The likelihood is that of the noise divided by its standard deviation and whitened, on an image that is
    continued periodically.

    Args:
        correlation: table (2k + 1, 2l + 1) of the correlation of pixels up to k rows and l columns apart. It
            is 1 at its centre and symmetric about it.
        gain: see GaussianNoise.
        offset: see GaussianNoise.
        min_variance: see GaussianNoise.
    """

    _correlation: Tensor

    def __init__(
        self,
        correlation: Sequence[Sequence[float]],
        *,
        gain: float = 0.0,
        offset: float = 0.0,
        min_variance: float | None = None,
    ) -> None:
        super().__init__(gain=gain, offset=offset, min_variance=min_variance)
        table = torch.tensor(correlation, dtype=torch.float32)
        centre = [(side - 1) // 2 for side in table.shape]
        if not (
            table.ndim == 2
            and all(side % 2 for side in table.shape)
            and float(table[centre[0], centre[1]]) == 1
            and torch.allclose(table, table.flip(0, 1), atol=1e-4)
        ):
            raise ValueError(
                f"CorrelatedNoise: got correlation of shape {tuple(table.shape)}; must have two odd sides, "
                "1 at its centre, and be the same mirrored through it"
            )
        self.correlation = table.tolist()
        self.register_buffer("_correlation", table, persistent=False)
        upright = _alike(table, table.flip(0))  # with the symmetry about its centre, left to right as well
        self.isotropic = upright and _alike(table, table.T)
        self.mirrors = ("y", "x", "yx") if upright else ("yx",)

    def spectrum(self, height: int, width: int) -> Tensor:
        """Power spectrum at the frequencies of `torch.fft.rfft2`, with mean 1 before the lower bound."""
        down, right = (max(0, (own - side + 1) // 2) for own, side in
                       zip(self._correlation.shape, (height, width), strict=True))  # fmt: skip
        rows, columns = self._correlation.shape
        table = self._correlation[down : rows - down, right : columns - right]  # distances within the image
        rows, columns = table.shape
        wrapped = F.pad(table, (0, width - columns, 0, height - rows))
        wrapped = wrapped.roll((-(rows // 2), -(columns // 2)), (0, 1))
        return torch.fft.rfft2(wrapped).real.clamp(min=LEAST_POWER)

    @property
    def neighbours(self) -> tuple[float, float]:
        """Correlation of neighbouring pixels along y and along x."""
        y, x = (side // 2 for side in self._correlation.shape)
        below = self.correlation[y + 1][x] if y else 0.0
        return below, self.correlation[y][x + 1] if x else 0.0

    def at(self, lags: Sequence[tuple[int, int]]) -> Tensor:
        """Correlation of pixels so many rows and columns apart, (len(lags),); 0 beyond the table.

        For a distance along both axes, the mean of both diagonals.
        """
        y, x = (side // 2 for side in self._correlation.shape)
        table = self._correlation.lerp(self._correlation.flip(1), 0.5)
        inside = [dy <= y and dx <= x for dy, dx in lags]
        return torch.stack([table[y + dy, x + dx] if near else table.new_zeros(())
                            for (dy, dx), near in zip(lags, inside, strict=True)])  # fmt: skip

    def unit(self, like: Tensor) -> Tensor:
        """Noise of standard deviation 1, shaped like `like` (..., H, W)."""
        margin = max(self._correlation.shape) // 2
        height, width = (side + margin for side in like.shape[-2:])  # keeps borders independent
        white = torch.randn(*like.shape[:-2], height, width, device=like.device)
        power = self.spectrum(height, width)
        noise = torch.fft.irfft2(torch.fft.rfft2(white) * power.sqrt(), (height, width))
        return noise[..., : like.shape[-2], : like.shape[-1]]

    def log_likelihood(self, noisy: Tensor, signal: Tensor) -> Tensor:
        with torch.autocast(signal.device.type, enabled=False):
            noisy, signal = noisy.float(), signal.float()
            variance = self.variance(signal)
            height, width = noisy.shape[-2:]
            power = self.spectrum(height, width)
            residual = (noisy - signal) / variance.sqrt()
            white = torch.fft.irfft2(torch.fft.rfft2(residual) / power.sqrt(), (height, width))
            whole = torch.cat(
                [power, power[:, 1 : (width + 1) // 2]], dim=1
            )  # with the half that rfft2 omits
            return -0.5 * (white.square() + (2 * math.pi * variance).log() + whole.log().mean())

    def sample(self, signal: Tensor) -> Tensor:
        signal = signal.float()
        return signal + self.variance(signal).sqrt() * self.unit(signal)

    def split(self, noisy: Tensor, share: float) -> tuple[Tensor, Tensor]:
        """Splits an image into two of the same signal with independent noise.

        Their variances are variance / share and variance / (1 - share). One random noise is added to the
        first and subtracted from the second (Pang et al. 2021, arXiv:2106.02087).
        """
        added = self.variance(wide_mean(noisy)).sqrt() * self.unit(noisy)
        ratio = math.sqrt((1 - share) / share)
        return noisy + ratio * added, noisy - added / ratio

    @classmethod
    def read(cls, path: npz.NoiseFile) -> CorrelatedNoise:
        """Reads the model from an .npz file of `write`. ValueError if the file is not one."""
        try:
            arrays = npz.read(path, ["correlation"], ("gain", "offset", "min_variance"))
            return cls(**{key: value.tolist() for key, value in arrays.items()})
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: not a readable model of correlated noise ({error})") from error

    def write(self, path: npz.NoiseFile) -> None:
        """Writes the model to an .npz file."""
        line = {"gain": self.gain, "offset": self.offset, "min_variance": self.min_variance}
        npz.write(path, correlation=self.correlation, **{k: v for k, v in line.items() if v is not None})

    @classmethod
    def from_denoised(
        cls, noisy: Tensor, denoise: Callable[[GaussianNoise], Tensor], rounds: int = 2
    ) -> CorrelatedNoise:
        """Estimates the noise of images (N, 1, H, W), in raw counts, with a denoiser that takes a noise line.

        A denoiser that assumes too little noise takes the rest for structure, and so confirms the assumption.
        Hence the first line is that of the smoothest parts of the images, with the structure in them.
        """
        noise = cls.from_residuals(noisy - denoise(_smoothest(noisy)), noisy)
        for _ in range(rounds - 1):
            noise = cls.from_residuals(noisy - denoise(noise), noisy)
        return noise

    def or_from_repeats(self, noisy: Tensor, denoise: Callable[[GaussianNoise], Tensor]) -> CorrelatedNoise:
        """The noise of frames (N, 1, H, W) from their differences, if all show the same field; else this one.

        A denoiser keeps some of the noise as structure, so that residuals lack it. Differences of frames do
        not, but they lack what is the same in all frames, and have what has moved.
        """
        if len(noisy) < 2:
            return self
        denoised, level = denoise(self), wide_mean(noisy)
        change, noise = (denoised[1:] - denoised[:-1]).square().mean() / 2, self.variance(level).mean()
        if change > _MOVED[0] * denoised.var() or change > _MOVED[1] * noise:
            return self
        difference = (noisy[1:] - noisy[:-1]) / math.sqrt(2)
        difference = difference - difference.mean((2, 3), keepdim=True)  # a lamp that flickers
        found = self.from_noise(difference, (denoised[1:] + denoised[:-1]) / 2)
        return found if found.variance(level).mean() > _FIXED * noise else self

    @classmethod
    def from_residuals(cls, residual: Tensor, noisy: Tensor) -> CorrelatedNoise:
        """Estimates the noise from noisy images (N, 1, H, W) and their residuals, noisy - denoised.

        If the denoised images are posterior means, only the noise in the residual is correlated with the
        noisy image. So the product of both has the power of the noise, with the part that is still in the
        denoised image.
        """
        level = wide_mean(noisy)  # structure that is wider than noise would only add scatter to the product
        return cls._from_products(level, residual, noisy - level)

    @classmethod
    def from_noise(cls, noise: Tensor, signal: Tensor) -> CorrelatedNoise:
        """Estimates the model from frames of noise alone (N, 1, H, W) and their signal, which broadcasts."""
        return cls._from_products(signal.expand_as(noise), noise, noise)

    @classmethod
    def _from_products(cls, level: Tensor, first: Tensor, second: Tensor) -> CorrelatedNoise:
        line = _line(level, first * second)
        std = line.variance(level).sqrt()
        table = _correlation(first / std, second / std)
        return cls(table.tolist(), gain=line.gain or 0.0, offset=line.offset or 0.0,
                   min_variance=line.min_variance)  # fmt: skip


def _alike(table: Tensor, other: Tensor) -> bool:
    """Whether two tables of correlations agree within their accuracy; beyond its ends a table is 0."""
    rows, columns = (max(sides) for sides in zip(table.shape, other.shape, strict=True))
    first, second = (
        F.pad(v, ((columns - v.shape[1]) // 2,) * 2 + ((rows - v.shape[0]) // 2,) * 2) for v in (table, other)
    )
    return bool((first - second).abs().max() <= SLIGHTEST)


def wide_mean(noisy: Tensor) -> Tensor:
    """Local mean of images (B, C, H, W) over enough pixels to average even correlated noise."""
    size = max(1, min(_WIDE, *(2 * (side // 2) - 1 for side in noisy.shape[-2:])))
    return F.avg_pool2d(noisy, size, 1, size // 2, count_include_pad=False)


def _smoothest(noisy: Tensor) -> GaussianNoise:
    """The noise line of the smallest local variances of images (N, 1, H, W)."""
    side = min(_LOCAL, *noisy.shape[-2:])
    level = F.avg_pool2d(noisy, side, 1)
    return _line(level, F.avg_pool2d(noisy.square(), side, 1) - level.square(), least=0.2)


def _line(level: Tensor, square: Tensor, least: float = 1.0) -> GaussianNoise:
    """The line of squared errors against brightness, from the fraction `least` of a bin's smallest."""
    level, square = level.flatten(), square.flatten()
    rows = []
    for members in level.argsort().tensor_split(_BINS):
        used = members[square[members].argsort()[: max(1, round(least * len(members)))]]
        rows.append([float(v[used].double().mean()) for v in (level, square)] + [len(used) / _ALIKE])
    return GaussianNoise.from_bins(*torch.tensor(rows, dtype=torch.float64).T)


def _correlation(first: Tensor, second: Tensor) -> Tensor:
    """Correlation (2k + 1, 2l + 1) between two sets of images (N, 1, H, W), from windowed spectra."""
    sides = [min(_WINDOW, side) for side in first.shape[-2:]]
    window = torch.outer(*(torch.hann_window(side, device=first.device) for side in sides))
    height, width = sides
    tiles = [
        v.unfold(2, height, max(1, height // 2)).unfold(3, width, max(1, width // 2)) for v in (first, second)
    ]
    spectra = [torch.fft.rfft2(each * window) for each in tiles]
    power = (spectra[0] * spectra[1].conj()).real.mean((0, 1, 2, 3)).clamp(min=0)
    alone = torch.fft.rfft2(window).abs().square()  # the spectrum of the window alone
    table, fades = (torch.fft.fftshift(torch.fft.irfft2(v, sides)) for v in (power, alone))
    table = (table / fades.clamp(min=0.05 * float(fades.max()))).cpu()
    y, x = (side // 2 for side in sides)
    table = table / table[y, x]
    down, right = _last(table[y : y + REACH, x]), _last(table[y, x : x + REACH])
    return table[y - down : y + down + 1, x - right : x + right + 1]


def _last(correlation: Tensor) -> int:
    """The largest distance at which there is a correlation."""
    return int((correlation.abs() > SLIGHTEST).nonzero().max())
