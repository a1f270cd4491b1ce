"""Plots of residuals, which show whether structure was removed with the noise."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distill.files import whole_file
from samplers import AutoregressiveNoise, ChannelNoise, NoiseModel
from samplers.noise import autocorrelation

LAGS, BINS = 12, 40


Curves = dict[str, Any]


def residual_curves(
    noisy: Tensor, images: dict[str, Tensor], noise_model: NoiseModel | None
) -> dict[str, Curves]:
    """Curves of the residual of each denoised image (C, H, W), of the first channel, by its name.

    These are its autocorrelation `along x` and `along y`, and against the `signal` its `mean`, its `std` and
    the std `expected` from the noise model, in counts.
    """
    if isinstance(noise_model, ChannelNoise):
        noise_model = noise_model.of(len(noisy))[0]
    return {name: _curves(noisy[0], image[0], noise_model) for name, image in images.items()}


def _curves(noisy: Tensor, image: Tensor, noise_model: NoiseModel | None) -> Curves:
    residual = noisy - image
    lags = min(LAGS, min(residual.shape) - 1)
    values = autocorrelation(residual, lags).numpy()
    signal, mean, std = _by_signal(image.numpy(), residual.numpy())
    curves = {"along x": values[lags, lags:], "along y": values[lags:, lags],
              "signal": signal, "mean": mean, "std": std}  # fmt: skip
    if noise_model is not None and not isinstance(noise_model, AutoregressiveNoise):
        level = torch.from_numpy(signal).float()[:, None].expand(-1, 4096)[None, None]
        curves["expected"] = (noise_model.sample(level) - level).std(-1)[0, 0].numpy()
    return {name: curve.tolist() for name, curve in curves.items()}


def residual_picture(path: Path, noisy: Tensor, images: dict[str, Tensor], curves: dict[str, Curves]) -> None:
    """Plots the residual of each denoised image (C, H, W), of the first channel, beside its curves."""
    from matplotlib.figure import Figure

    height = 4 * len(images)
    # Margins, above and below in inches: to compute them takes as long as the rest.
    margins = dict(left=0.02, right=0.99, bottom=0.55 / height, top=1 - 0.35 / height)
    figure = Figure(figsize=(13, height))
    axes = figure.subplots(len(images), 3, squeeze=False, gridspec_kw=margins | dict(hspace=0.3, wspace=0.25))
    for (name, image), (whole, correlation, against) in zip(images.items(), axes, strict=True):
        residual = (noisy - image)[0]
        limit = 3 * float(residual.std())
        whole.imshow(residual.numpy(), cmap="gray", vmin=-limit, vmax=limit, interpolation="nearest")
        whole.set(title=f"noisy - {name}", xticks=[], yticks=[])
        own = curves[name]
        for direction in ("along x", "along y"):
            correlation.plot(own[direction], "o-", markersize=4, label=direction)
        correlation.axhline(0, color="grey", linewidth=0.5)
        correlation.set(title="autocorrelation of the residual", xlabel="pixels apart")
        against.plot(own["signal"], own["mean"], label="mean of the residual")
        against.plot(own["signal"], own["std"], label="its std")
        if "expected" in own:
            against.plot(own["signal"], own["expected"], "k--", label="the noise model's std")
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
