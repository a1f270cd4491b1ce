"""Gaussian noise with a constant standard deviation, or with a variance that is linear in the signal."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from samplers.noise import npz
from samplers.noise.base import NoiseModel
from samplers.noise.bins import fit_line, variance_bins
from samplers.noise.pairs import draw_pairs
from samplers.noise.quantised import checked, log_bin_probability, quantise

_ARGUMENTS = ("std", "gain", "offset", "min_variance", "step", "clip")
_FAR = 30.0  # standard deviations beyond which a deviation is not noise


class GaussianNoise(NoiseModel):
    """N(noisy; signal, variance), in raw counts.

    The noise has either a constant `std`, or the variance gain * signal + offset. Without `step`, the
    likelihood falls only exponentially beyond 30 standard deviations, so that a hot pixel does not outweigh
    all others.

    Args:
        std: standard deviation in raw counts.
        gain: raw counts per photon, for Poisson-Gaussian noise.
        offset: read variance - gain * black level, in counts squared; it may be negative. Default: 0.
        min_variance: lower bound of the variance. Default: 1 % of gain^2 + max(offset, 0).
        step: spacing of the recorded values (1 for integers); the likelihood is then that of quantised data,
            see NoiseModel. Default: continuous values.
        clip: lowest and highest recorded value, see NoiseModel; only with `step`.
    """

    def __init__(
        self,
        std: float | None = None,
        *,
        gain: float | None = None,
        offset: float | None = None,
        min_variance: float | None = None,
        step: float | None = None,
        clip: Sequence[float] | None = None,
    ):
        super().__init__()
        self.step, self.clip = step, checked("GaussianNoise", step, clip)
        self.std, self.gain, self.offset = std, gain, offset
        self.min_variance = min_variance
        if std is not None and gain is None:
            if not 0 < std < math.inf or offset is not None:
                raise ValueError(
                    f"GaussianNoise: got std={std}, offset={offset}; "
                    "std must be positive and finite, and takes no offset"
                )
            line = (0.0, std**2, std**2)
        elif gain is not None and std is None:
            offset = offset or 0.0
            floor = 0.01 * (gain**2 + max(offset, 0.0)) if min_variance is None else min_variance
            if not (0 <= gain < math.inf and math.isfinite(offset) and 0 < floor < math.inf):
                raise ValueError(
                    f"GaussianNoise: got gain={gain}, offset={offset}, min_variance={floor}; "
                    "needs gain >= 0 and a variance above 0"
                )
            line = (gain, offset, floor)
        else:
            raise ValueError(
                f"GaussianNoise: got std={std}, gain={gain}; "
                "pass either std, or gain with offset, in raw counts"
            )
        self._line = tuple(map(float, line))  # plain numbers: no device, no cast by .half()

    def variance(self, signal: Tensor) -> Tensor:
        """Noise variance at `signal`, in counts squared."""
        gain, offset, floor = self._line
        return (gain * signal.float() + offset).clamp(min=floor)

    def log_likelihood(self, noisy: Tensor, signal: Tensor) -> Tensor:
        with torch.autocast(signal.device.type, enabled=False):
            noisy, signal = noisy.float(), signal.float()
            variance = self.variance(signal)
            if self.step is not None:
                return log_bin_probability(noisy, signal, variance, self.step, self.clip)
            square = (noisy - signal) ** 2 / variance
            far = _FAR * (2 * square.clamp(min=_FAR**2).sqrt() - _FAR)
            return -0.5 * (torch.where(square > _FAR**2, far, square) + (2 * math.pi * variance).log())

    def sample(self, signal: Tensor) -> Tensor:
        signal = signal.float()
        noisy = signal + self.variance(signal).sqrt() * torch.randn_like(signal)
        return quantise(noisy, self.step, self.clip)

    def split(self, noisy: Tensor, share: float) -> tuple[Tensor, Tensor]:
        """Splits an image into two of the same signal with independent noise.

        Their variances are variance / share and variance / (1 - share). One random noise is added to the
        first and subtracted from the second (Pang et al. 2021, arXiv:2106.02087). This is exact for a
        constant `std` only, because noise that depends on the signal is skewed; PhotonNoise splits that.
        """
        if self.std is None:
            raise ValueError("GaussianNoise: only noise of a constant std can be split; fit a PhotonNoise")
        added = self.std * torch.randn_like(noisy)
        ratio = math.sqrt((1 - share) / share)
        return noisy + ratio * added, noisy - added / ratio

    @classmethod
    def read(cls, path: npz.NoiseFile) -> GaussianNoise:
        """Reads the model from an .npz file of `write`. ValueError if the file is not one."""
        try:
            return cls(**{key: value.tolist() for key, value in npz.read(path, optional=_ARGUMENTS).items()})
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: not a readable Gaussian noise model ({error})") from error

    def write(self, path: npz.NoiseFile) -> None:
        """Writes the model to an .npz file, with one key for each argument that is not None."""
        npz.write(path, **{k: v for k in _ARGUMENTS if (v := getattr(self, k)) is not None})

    @classmethod
    def fit(
        cls,
        signal: Tensor | np.ndarray,
        observation: Tensor | np.ndarray,
        *,
        percentiles: tuple[float, float] = (0.0, 100.0),
        max_pairs: int = 2_000_000,
        seed: int = 0,
    ) -> GaussianNoise:
        """Fits gain and offset to pairs in raw counts, by a robust line through the variances of 50 bins.

        `signal` broadcasts to `observation`; signals outside `percentiles` are dropped.
        """
        rng = np.random.default_rng(seed)
        pairs = draw_pairs(signal, observation, percentiles, max_pairs, rng, "GaussianNoise.fit")
        order = pairs[0].argsort()
        s, square = (np.array_split(v[order].astype("f8"), 50) for v in (pairs[0], pairs[1] ** 2))
        bins = [[b.mean() for b in s], [b.mean() for b in square], [len(b) for b in s]]
        return cls.from_bins(*torch.tensor(bins, dtype=torch.float64))

    @classmethod
    def estimate(cls, frames: Tensor | np.ndarray) -> GaussianNoise:
        """Estimates gain and offset from noisy images alone (Foi et al. 2008, IEEE TIP 17, 1737).

        The line is fitted to variance against mean over smooth pixels; all frames and channels share it. A
        slight correlation between the noise of neighbouring pixels is corrected for. Strongly correlated
        noise is underestimated, see `neighbour_correlation`. At most 2 million pixels are read, evenly
        spread. Raises ValueError if the frames are too small, constant or not finite.

        Args:
            frames: images (N, C, H, W), (N, H, W) or (H, W) in raw counts; may be memory-mapped.
        """
        return cls.from_bins(*variance_bins(frames))

    @classmethod
    def from_bins(cls, level: Tensor, variance: Tensor, pixels: Tensor) -> GaussianNoise:
        """Fits a robust line to variances (bins,) at signals `level` (bins,), each of that many `pixels`."""
        gain, offset = fit_line(level, variance, pixels)
        # Signals below the darkest one measured (a decoder overshoots) keep half its variance.
        darkest = max(gain * float(level.min()) + offset, float(variance.min()))
        return cls(gain=gain, offset=offset, min_variance=0.5 * darkest)
