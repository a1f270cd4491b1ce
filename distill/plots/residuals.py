"""Plots of residuals, which show whether structure was removed with the noise."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from distill.files import whole_file
from samplers import AutoregressiveNoise, ChannelNoise, NoiseModel
from samplers.noise import autocorrelation

LAGS, BINS = 12, 40


def residual_picture(
    path: Path, noisy: Tensor, images: dict[str, Tensor], noise_model: NoiseModel | None
) -> None:
    """Plots the residual of each denoised image (C, H, W) and its statistics, of the first channel.

    These are the residual itself, its autocorrelation, and its mean and std against the signal beside the std
    of the noise model.
    """
    from matplotlib.figure import Figure

    if isinstance(noise_model, ChannelNoise):
        noise_model = noise_model.of(len(noisy))[0]
    figure = Figure(figsize=(13, 4 * len(images)), layout="constrained")
    axes = figure.subplots(len(images), 3, squeeze=False)
    for (name, image), (whole, correlation, against) in zip(images.items(), axes, strict=True):
        residual = (noisy - image)[0]
        limit = 3 * float(residual.std())
        whole.imshow(residual.numpy(), cmap="gray", vmin=-limit, vmax=limit, interpolation="nearest")
        whole.set(title=f"noisy - {name}", xticks=[], yticks=[])
        lags = min(LAGS, min(residual.shape) - 1)
        values = autocorrelation(residual, lags).numpy()
        for direction, profile in {"x": values[lags, lags:], "y": values[lags:, lags]}.items():
            correlation.plot(profile, "o-", markersize=4, label=f"along {direction}")
        correlation.axhline(0, color="grey", linewidth=0.5)
        correlation.set(title="autocorrelation of the residual", xlabel="pixels apart")
        signal, mean, std = _by_signal(image[0].numpy(), residual.numpy())
        against.plot(signal, mean, label="mean of the residual")
        against.plot(signal, std, label="its std")
        if noise_model is not None and not isinstance(noise_model, AutoregressiveNoise):
            level = torch.from_numpy(signal).float()[:, None].expand(-1, 4096)[None, None]
            sample = noise_model.sample(level) - level
            against.plot(signal, sample.std(-1)[0, 0].numpy(), "k--", label="the noise model's std")
        against.axhline(0, color="grey", linewidth=0.5)
        against.set(title="residual against signal", xlabel="signal (counts)", ylabel="counts")
        correlation.legend(fontsize=8)
        against.legend(fontsize=8)
    with whole_file(path) as part:
        figure.savefig(part, format="png", dpi=100)


def _by_signal(signal: np.ndarray, residual: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(mean signal, mean of the residual, std of the residual) in bins of equally many pixels."""
    order = np.argsort(signal, axis=None)
    bins = [part for part in np.array_split(order, BINS) if len(part)]
    signal, residual = signal.ravel(), residual.ravel()
    statistics = [(signal[part].mean(), residual[part].mean(), residual[part].std()) for part in bins]
    level, mean, std = (np.array(column) for column in zip(*statistics, strict=True))
    return level, mean, std
