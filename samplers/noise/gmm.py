"""Signal-dependent Gaussian-mixture noise (PN2V family: Prakash et al. 2020, arXiv:1911.12291)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from samplers.noise import npz
from samplers.noise.base import NoiseModel
from samplers.noise.pairs import draw_pairs
from samplers.noise.quantised import checked, log_bin_probability, quantise

_KEYS = ("trained_weight", "min_signal", "max_signal", "min_sigma")
_QUANTISED = ("step", "clip")


class GaussianMixtureNoise(NoiseModel):
    """Mixture of G Gaussians whose parameters are polynomials in the signal, in raw counts.

    The mean of the mixture is the signal.

    Args:
        weight: coefficients (3G, K), with rows for means, log variances and log weights. Coefficient i
            multiplies t^i, where t = (signal - min_signal) / (max_signal - min_signal).
        min_signal: signal at which t is 0.
        max_signal: signal at which t is 1.
        min_sigma: lower bound of the VARIANCE (50 means std >= 7.07). The file format and the tools that
            write it call it a standard deviation, but compare it with sigma^2.
        step: spacing of the recorded values (1 for integers); the likelihood is then that of quantised data,
            see NoiseModel, and `weight` describes the camera before rounding, as a fit to dequantised data
            does closely. Default: continuous values.
        clip: lowest and highest recorded value, see NoiseModel; only with `step`.
    """

    _coefficients: Tensor

    def __init__(
        self,
        weight: Sequence[Sequence[float]],
        min_signal: float,
        max_signal: float,
        min_sigma: float,
        *,
        step: float | None = None,
        clip: Sequence[float] | None = None,
    ):
        super().__init__()
        table = np.asarray(weight, dtype=np.float64)
        low, high, floor = (float(np.asarray(v).squeeze()) for v in (min_signal, max_signal, min_sigma))
        _check(table, low, high, floor)
        self.weight: list[list[float]] = table.tolist()
        self.min_signal, self.max_signal, self.min_sigma = low, high, floor
        self.step, self.clip = step, checked("GaussianMixtureNoise", step, clip)
        # Rebuilt from the constructor's arguments, so a checkpoint need not hold it twice.
        coefficients = torch.tensor(table, dtype=torch.float32)
        self.register_buffer("_coefficients", coefficients, persistent=False)

    @classmethod
    def read(cls, path: npz.NoiseFile) -> GaussianMixtureNoise:
        """Reads the model from a PN2V, PPN2V or CAREamics .npz file. ValueError if the file is not one."""
        stored = npz.read(path, _KEYS, _QUANTISED)
        quantised = {key: stored[key].tolist() for key in _QUANTISED if key in stored}
        try:
            return cls(*(stored[key].tolist() for key in _KEYS), **quantised)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: {error}") from None

    def write(self, path: npz.NoiseFile) -> None:
        """Writes the .npz file that `read` and PN2V-family tools read; those tools ignore step and clip."""
        weight = np.asarray(self.weight, dtype=np.float32)
        values = (weight, [self.min_signal], [self.max_signal], self.min_sigma)
        quantised = {k: v for k in _QUANTISED if (v := getattr(self, k)) is not None}
        npz.write(path, **dict(zip(_KEYS, values, strict=True)), **quantised)

    def _components(self, signal: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return mixture(self._coefficients.float(), signal, self.min_signal, self.max_signal, self.min_sigma)

    def log_likelihood(self, noisy: Tensor, signal: Tensor) -> Tensor:
        with torch.autocast(signal.device.type, enabled=False):
            noisy, signal = noisy.float(), signal.float()
            # Components come first in (G, *S), so a signal with fewer dimensions than noisy is expanded here.
            signal = signal.reshape((1,) * (noisy.ndim - signal.ndim) + signal.shape)
            if self.step is None:
                return mixture_log_density(noisy - signal, *self._components(signal))
            log_alpha, offset, variance = self._components(signal)
            mean = signal + offset
            log_bin = log_bin_probability(noisy, mean, variance, self.step, self.clip)
            return (log_alpha + log_bin).logsumexp(0)

    def sample(self, signal: Tensor) -> Tensor:
        signal = signal.float()
        log_alpha, offset, variance = self._components(signal)
        gumbel = -torch.empty_like(log_alpha).exponential_().log()
        k = (log_alpha + gumbel).argmax(0, keepdim=True)
        std = variance.gather(0, k)[0].sqrt()
        noisy = signal + offset.gather(0, k)[0] + std * torch.randn_like(signal)
        return quantise(noisy, self.step, self.clip)

    @classmethod
    def fit(
        cls,
        signal: Tensor | np.ndarray,
        observation: Tensor | np.ndarray,
        n_gaussian: int = 3,
        n_coeff: int = 2,
        *,
        steps: int = 1000,
        batch_size: int = 16384,
        lr: float = 0.03,
        min_sigma: float | None = None,
        percentiles: tuple[float, float] = (0.0, 100.0),
        max_pairs: int = 2_000_000,
        seed: int = 0,
    ) -> GaussianMixtureNoise:
        """Maximum-likelihood fit to pairs of signal and observation in raw counts.

        `signal` broadcasts to `observation`, such as the mean (H, W) of a static stack to its frames
        (N, H, W), or is a denoised stack of the same shape. Signals outside `percentiles` are dropped; take
        (0, 100) for a calibration and (0.5, 99.5) for a signal that is itself an estimate. `min_sigma`, a
        variance, is a tenth of the smallest variance in the data by default.
        """
        rng = np.random.default_rng(seed)
        s, residual, low, high = draw_pairs(
            signal, observation, percentiles, max_pairs, rng, "GaussianMixtureNoise.fit"
        )
        t = (s - low) / (high - low)
        line, least = _variance_line(t, residual)
        floor = 0.1 * least if min_sigma is None else float(min_sigma)
        unit = residual.std()  # unit of the mean offsets, so that one lr suits every camera
        spread = np.linspace(0.5, 1.5, n_gaussian) if n_gaussian > 1 else np.ones(1)
        start = np.zeros((3, n_gaussian, n_coeff))
        start[0, :, 0] = np.linspace(-0.3, 0.3, n_gaussian) if n_gaussian > 1 else 0
        start[1, :, :] = math.log(1e-3 * line.sum())
        start[1, :, : len(line)] = np.log(line[:n_coeff] * spread[:, None])
        theta = torch.tensor(start, dtype=torch.float32, requires_grad=True)

        def weight() -> Tensor:
            return torch.cat([theta[0] * unit, theta[1], theta[2]])

        def loss(index: Tensor) -> Tensor:
            parts = mixture(weight(), s[index], low, high, floor)
            return -mixture_log_density(residual[index], *parts).mean()

        s, residual = torch.from_numpy(s), torch.from_numpy(residual)
        unit = float(unit)
        generator = torch.Generator().manual_seed(seed)
        held_out = torch.arange(min(len(s), 100_000))  # pairs are in random order already
        optimizer = torch.optim.Adam([theta], lr=lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=lr * 1e-3)
        best, best_weight = math.inf, None
        for step in range(steps + 1):
            if step % 100 == 0 or step == steps:
                with torch.no_grad():
                    value = float(loss(held_out))
                if value < best:
                    best, best_weight = value, weight().detach().clone()
            optimizer.zero_grad()
            loss(torch.randint(len(s), (batch_size,), generator=generator)).backward()
            optimizer.step()
            schedule.step()
        if best_weight is None:
            raise ValueError(f"GaussianMixtureNoise.fit: likelihood is {value}; lower lr={lr}")
        return cls(best_weight.tolist(), low, high, floor)


def mixture(
    weight: Tensor, signal: Tensor, low: float, high: float, floor: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(log weights, mean - signal, variances), each (G, *signal.shape), from coefficients `weight` (3G, K).

    Outside [low, high], which the output of a decoder may leave, polynomials diverge. So weights and offsets
    keep their values at the end of the range there, and the variance follows its tangent.
    """
    t = (signal - low) / (high - low)
    inside = t.clamp(0, 1)
    powers = torch.stack([inside**i for i in range(weight.shape[1])])  # (K, *S)
    slopes = torch.stack([i * inside ** max(i - 1, 0) for i in range(weight.shape[1])])
    means, log_coefs, logits = weight.chunk(3)
    log_alpha = torch.tensordot(logits, powers, 1).log_softmax(0)
    offset = torch.tensordot(means, powers, 1)
    offset = offset - (log_alpha.exp() * offset).sum(0)
    coefs = log_coefs.exp()
    variance = torch.tensordot(coefs, powers, 1) + torch.tensordot(coefs, slopes, 1) * (t - inside)
    return log_alpha, offset, variance.clamp(min=floor)


def mixture_log_density(residual: Tensor, log_alpha: Tensor, offset: Tensor, variance: Tensor) -> Tensor:
    """log sum_k alpha_k N(residual; offset_k, variance_k), by logsumexp, so that it never underflows."""
    squared = (residual - offset) ** 2 / variance
    return (log_alpha - 0.5 * (squared + (2 * math.pi * variance).log())).logsumexp(0)


def _check(table: np.ndarray, low: float, high: float, floor: float) -> None:
    if table.ndim != 2 or table.shape[0] % 3 or table.size == 0 or not np.isfinite(table).all():
        raise ValueError(
            f"GaussianMixtureNoise: weight of shape {table.shape}; allowed is (3 * Gaussians, "
            "coefficients), all finite"
        )
    if not (math.isfinite(low) and low < high < math.inf and 0 < floor < math.inf):
        raise ValueError(
            f"GaussianMixtureNoise: min_signal={low}, max_signal={high}, min_sigma={floor}; "
            "needs min_signal < max_signal and min_sigma > 0"
        )


def _variance_line(t: np.ndarray, residual: np.ndarray) -> tuple[np.ndarray, float]:
    """Start of the fit: positive (value at t = 0, slope) of the variance, and its smallest value."""
    order = t.argsort()
    t_bins = np.array([b.mean() for b in np.array_split(t[order], 20)])
    v_bins = np.array([b.var() for b in np.array_split(residual[order], 20)]).clip(min=1e-12)
    slope, base = np.polyfit(t_bins, v_bins, 1, w=1 / v_bins)
    least = float(v_bins.min())
    return np.array([max(base, 0.1 * least), max(slope, 0.1 * least)]), least
