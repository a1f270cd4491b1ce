"""Unmixes an image into three structures, first with a function of NumPy, then in one pass.

python recipes/unmixing_unet_l2.py

Any sampler with out_channels works in the same way, such as a MicroSplit network in a FunctionSampler.
"""

from pathlib import Path

import numpy as np
import torch

from distill import Stack, evaluate, keep_freed_memory, psnr, report, train
from losses import L2
from samplers import NumpySampler
from students import LightUNet

# Fine, middling and coarse structures are Gaussian random fields with a known posterior.
LENGTHS, STD, NOISE = (1.0, 3.0, 8.0), 30.0, 15.0  # px; counts, of each structure and of the noise
MEANS = np.array([60.0, 80.0, 100.0])[:, None, None]  # counts


def powers(height: int, width: int) -> np.ndarray:
    """Power spectra of the structures (3, height, width): variance per frequency."""
    squared = np.fft.fftfreq(height)[:, None] ** 2 + np.fft.fftfreq(width) ** 2
    shapes = np.stack([np.exp(-2 * (np.pi * length) ** 2 * squared) for length in LENGTHS])
    return STD**2 * shapes / shapes.mean(axis=(1, 2), keepdims=True)


def structures(n: int, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Draws of the prior (n, 3, height, width), without MEANS."""
    white = np.fft.fft2(rng.standard_normal((n, 3, height, width)))
    return np.fft.ifft2(white * np.sqrt(powers(height, width))).real


def observed(parts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Structures (n, 3, Y, X) -> their noisy sum (n, Y, X)."""
    mixed = parts.sum(axis=1)
    return mixed + NOISE * rng.standard_normal(mixed.shape)


def unmixed(noisy: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Noisy (B, 1, Y, X) -> a draw (B, 3, Y, X) of the posterior, by Matheron's rule."""
    n, _, height, width = noisy.shape
    power, parts = powers(height, width), structures(n, height, width, rng)
    difference = np.fft.fft2(noisy[:, 0] - MEANS.sum() - observed(parts, rng))
    gain = power / (power.sum(axis=0) + NOISE**2)
    return MEANS + parts + np.fft.ifft2(gain * difference[:, None]).real


def main(*, out: str = "runs/unmixing_unet_l2", steps: int = 600, size: int = 128) -> None:
    rng = np.random.default_rng(0)
    clean = MEANS + structures(16, size, size, rng)
    noisy = observed(clean, rng).astype(np.float32)
    sampler = NumpySampler(unmixed, out_channels=3, out_names=("fine", "middling", "coarse"))

    torch.manual_seed(0)
    student = LightUNet(out_channels=3, depth=4)
    run = train(noisy, sampler, student, L2(), out, steps=0, refine_steps=steps, batch_size=4)

    truth = Stack(clean[:2].astype(np.float32), "TCYX")
    evaluate(run, noisy[:2], truth, draws=(1, 10, 100))
    print(Path(out, "evaluation.md").read_text(encoding="utf-8"))
    images = run.denoiser(torch.from_numpy(noisy[:2, None]).to(run.denoiser.mean.device)).detach().cpu()
    for name, image, part in zip(sampler.out_names, images.unbind(1), clean[:2].swapaxes(0, 1), strict=True):
        print(f"{name}: {psnr(image, torch.from_numpy(part)):.2f} dB")
    print(f"student, pictures and tables: {report(run)}")


if __name__ == "__main__":
    keep_freed_memory()
    main()
