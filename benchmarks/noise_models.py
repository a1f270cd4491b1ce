"""Measures the held-out likelihood of all noise models on real repeated frames (about 2 minutes, two cores).

    DISTILL_TEST_DATA=... python benchmarks/noise_models.py

Confocal FOV 1, 50 frames, whose mean is the signal. "fov1": pixels that no fit to repeats
uses; "fov19": another field with its own mean of 50. Dequantised, nats per pixel, lower is better.
"""

import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch

from distill.noise_fitting.fit import fit_noise_model
from samplers import GaussianNoise, NoiseModel

MODELS: dict[str, dict[str, Any]] = {
    "gaussian": {"kind": "gaussian"}, "GMM G=1": {"n_gaussian": 1}, "GMM G=3": {},
    "histogram": {"kind": "histogram"},
}  # fmt: skip
Pairs = tuple[torch.Tensor, torch.Tensor]  # signal, observation


def load(fov: str) -> tuple[np.ndarray, Pairs]:
    """Frames (50, 512, 512) and test pairs (50, K): rows from 448 on, every third pixel."""
    frames = tifffile.imread(Path(os.environ["DISTILL_TEST_DATA"]) / f"confocal_bpae_{fov}_noisy.tif")
    x = torch.from_numpy(frames[:, 448:].reshape(50, -1)[:, ::3]).float()
    signal = x.mean(0)
    residual = (x - signal) * (50 / 49) ** 0.5 + torch.rand_like(x) - 0.5
    return frames, (signal.expand_as(x), signal + residual)


def report(name: str, build: Callable[[], NoiseModel], tests: list[Pairs]) -> float:
    """Prints the model's figures -> that of the first pairs."""
    started = time.monotonic()
    model = build()
    seconds = time.monotonic() - started
    with torch.no_grad():
        figures = [-float(model.log_likelihood(x, s).mean()) for s, x in tests]
    print(f"{name:32} {figures[0]:8.4f} {figures[1]:8.4f} {seconds:8.1f}", flush=True)
    return figures[0]


def main() -> None:
    torch.manual_seed(0)
    frames, fov1 = load("fov1")
    _, fov19 = load("fov19")
    train, tests = frames[:, :448], [fov1, fov19]
    folder, figures = Path(tempfile.mkdtemp()), {}
    print(f"{'':32} {'fov1':>8} {'fov19':>8} {'seconds':>8}")
    report("gaussian, estimate on 1 frame", lambda: GaussianNoise.estimate(train[0]), tests)
    report("gaussian, estimate on 50", lambda: GaussianNoise.estimate(train), tests)
    for method in ("repeats", "bootstrap"):
        for name, options in MODELS.items():
            out = folder / f"{method}_{name.replace(' ', '_')}.npz"
            build = partial(fit_noise_model, train, out, method=method, **options)
            figures[name, method] = report(f"{name}, {method}", build, tests)
    for method in ("repeats", "bootstrap"):
        gain = figures["gaussian", method] - figures["GMM G=3", method]
        assert gain > 0, f"the GMM does not beat the Gaussian: {gain:.4f} nats"
    print(f"models and plots: {folder}")


if __name__ == "__main__":
    main()
