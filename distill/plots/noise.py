"""Plots that show whether a noise model fits: its density over the data, and its autocorrelation."""

from pathlib import Path

import numpy as np
import torch

from distill.files import whole_file
from samplers import NoiseModel
from samplers.noise import autocorrelation

LAGS = 12  # px


def noise_density(
    path: Path,
    model: NoiseModel,
    signal: np.ndarray,
    observation: np.ndarray,
    low: float,
    high: float,
) -> None:
    """Plots the model's mean, mean +- std and contours over the 2-D histogram of pairs (flat arrays).

    Contours are drawn at 60, 14 and 1 % of the highest density at a signal (1, 2 and 3 std of a Gaussian).
    """
    from matplotlib.figure import Figure

    bottom, top = np.percentile(observation, (0.01, 99.99))
    bottom, top = bottom - 0.05 * (top - bottom), top + 0.05 * (top - bottom)
    margin = 0.05 * (high - low)
    s = torch.linspace(low - margin, high + margin, 200)
    x = torch.linspace(float(bottom), float(top), 400)
    density = model.log_likelihood(x[:, None], s).double().exp()
    share = density / density.sum(0).clamp(min=1e-300)
    mean = (share * x[:, None]).sum(0)
    std = (share * (x[:, None] - mean) ** 2).sum(0).sqrt()
    figure = Figure(figsize=(6.4, 5.4))
    axis = figure.subplots()
    extent = [[float(s[0]), float(s[-1])], [bottom, top]]
    axis.hist2d(signal, observation, bins=(150, 150), range=extent, norm="log", cmap="Greys")
    relative = density / density.amax(0).clamp(min=1e-300)
    s, x, mean, std, relative = (v.numpy() for v in (s, x, mean, std, relative))
    axis.contour(s, x, relative, levels=[0.011, 0.135, 0.607], cmap="autumn", linewidths=0.8)
    axis.plot(s, mean, "C0-", label="mean")
    axis.plot(s, mean + std, "C0--", label="mean ± std")
    axis.plot(s, mean - std, "C0--")
    axis.set(xlabel="signal (counts)", ylabel="observation (counts)", ylim=(bottom, top))
    axis.set_title(f"{type(model).__name__}, held-out {model.held_out_nll:.4f} nats/pixel", fontsize=10)
    axis.legend(loc="upper left")
    with whole_file(path) as part:
        figure.savefig(part, format="png", dpi=110)


def noise_autocorrelation(path: Path, model: NoiseModel, noise: np.ndarray, signal: float) -> None:
    """Plots the autocorrelation of real noise (N, H, W) beside that of noise drawn from the model."""
    from matplotlib.figure import Figure

    side = min(64, *noise.shape[-2:])
    lags = min(LAGS, side - 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sample = model.sample(torch.full((16, side, side), signal)) - signal
    maps = {"real": autocorrelation(noise, lags).numpy(), "sampled": autocorrelation(sample, lags).numpy()}
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    axes = figure.subplots(1, 3)
    for axis, (name, values) in zip(axes, maps.items(), strict=False):
        picture = axis.imshow(values, cmap="RdBu_r", vmin=-1, vmax=1, extent=[-lags - 0.5, lags + 0.5] * 2)
        axis.set(title=f"{name} noise", xlabel="columns apart")
        for direction, profile, colour in zip(
            "xy", (values[lags, lags:], values[lags:, lags]), ("C0", "C1"), strict=True
        ):
            style = {"real": "o", "sampled": "-"}[name]
            axes[2].plot(profile, style, color=colour, markersize=4, label=f"{name}, along {direction}")
    axes[0].set_ylabel("rows apart")
    axes[2].set(xlabel="pixels apart", title="correlation", ylim=(None, 1.05))
    axes[2].axhline(0, color="grey", linewidth=0.5)
    axes[2].legend(fontsize=8)
    figure.colorbar(picture, ax=axes[:2])
    with whole_file(path) as part:
        figure.savefig(part, format="png", dpi=110)
