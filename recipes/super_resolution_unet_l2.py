"""Doubles the size of images in one pass: a sampler that enlarges, here with a known posterior.

python recipes/super_resolution_unet_l2.py

For real images, see diffusion_super_resolution_l2.py, a diffusion model with the physics of deepinv.
"""

from pathlib import Path

import numpy as np
import torch

from distill import evaluate, keep_freed_memory, report, train
from losses import L2
from samplers import NumpySampler
from students import LightUNet

MEAN, STD, LENGTH = 100.0, 30.0, 2.0  # counts, counts, px; of the signal, a Gaussian random field
NOISE = 5.0  # counts, of a coarse pixel, which is the mean of 2 x 2 fine ones


def power(height: int, width: int) -> np.ndarray:
    """Power spectrum of the signal: variance per frequency."""
    squared = np.fft.fftfreq(height)[:, None] ** 2 + np.fft.fftfreq(width) ** 2
    shape = np.exp(-2 * (np.pi * LENGTH) ** 2 * squared)
    return STD**2 * shape / shape.mean()


def signals(n: int, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Draws of the prior (n, height, width), without MEAN."""
    white = np.fft.fft2(rng.standard_normal((n, height, width)))
    return np.fft.ifft2(white * np.sqrt(power(height, width))).real


def observed(signal: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Signals (n, 2 Y, 2 X) -> noisy means of 2 x 2 pixels (n, Y, X)."""
    n, height, width = signal.shape
    coarse = signal.reshape(n, height // 2, 2, width // 2, 2).mean(axis=(2, 4))
    return coarse + NOISE * rng.standard_normal(coarse.shape)


def enlarged(noisy: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Noisy (B, 1, Y, X) -> a draw (B, 1, 2 Y, 2 X) of the posterior, by Matheron's rule."""
    n, _, height, width = noisy.shape
    prior = power(2 * height, 2 * width)
    signal = signals(n, 2 * height, 2 * width, rng)
    difference = np.fft.fft2(noisy[:, 0] - MEAN - observed(signal, rng))
    # The mean of 2 x 2 pixels as a filter; four frequencies of the fine image become one of the coarse.
    y, x = (np.exp(2j * np.pi * np.fft.fftfreq(2 * side)) / 2 + 0.5 for side in (height, width))
    box = y[:, None] * x
    total = (prior * np.abs(box) ** 2).reshape(2, height, 2, width).mean(axis=(0, 2)) + NOISE**2
    correction = prior * box.conj() * np.tile(difference / total, (1, 2, 2))
    return (MEAN + signal + np.fft.ifft2(correction).real)[:, None]


def main(*, out: str = "runs/super_resolution_unet_l2", steps: int = 600, size: int = 128) -> None:
    rng = np.random.default_rng(0)
    clean = (MEAN + signals(16, 2 * size, 2 * size, rng)).astype(np.float32)
    noisy = observed(clean, rng).astype(np.float32)

    torch.manual_seed(0)
    sampler = NumpySampler(enlarged, scale=2)
    run = train(noisy, sampler, LightUNet(scale=2), L2(), out, steps=0, refine_steps=steps, batch_size=4)

    evaluate(run, noisy[:2], clean[:2], draws=(1, 10, 100))
    print(Path(out, "evaluation.md").read_text(encoding="utf-8"))
    print(f"student, pictures and tables: {report(run)}")


if __name__ == "__main__":
    keep_freed_memory()
    main()
