"""Counted photons: what recipes/next_photon_unet_quantiles.py reaches, beside what one would pick instead.

    python recipes/next_photon_unet_quantiles.py && python benchmarks/photon_counting.py

PSNR of two frames of the built-in specimen with about 6 photons at the brightest pixels. The Gaussian filter
has the width that is best by the truth; BM3D (`pip install bm3d`, not for commercial use) works in the
Anscombe domain, by the exact unbiased inverse; the shipped weights estimate the noise from the images.
"""

import importlib.util
import sys

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from distill import load_denoiser, psnr, specimen
from distill.hardware import keep_freed_memory
from distill.images.sources import as_stack
from distill.images.statistics import spread
from distill.prediction.pretrained import pretrained_denoiser, pretrained_sampler
from distill.runs.checkpoint import load_sampler
from samplers import NextPhoton, posterior_mean

RUN = "runs/next_photon_unet_quantiles"


def bm3d_of_photons(photons: np.ndarray) -> np.ndarray:
    from quality import bm3d_anscombe

    np.__dict__.setdefault("trapz", np.trapezoid)  # bm3d knows it by a name that NumPy has no more
    return bm3d_anscombe(photons, 1.0, 0.0)["exact"]


@torch.no_grad()
def main(folder: str = RUN) -> None:
    keep_freed_memory()
    cells = specimen()
    truth = (cells.clean - cells.clean.min()) / 10  # as in the recipe
    photons = np.random.default_rng(0).poisson(truth).astype(np.float32)
    index = spread(len(photons), 2)
    clean, noisy = (torch.from_numpy(each[index])[:, None] for each in (truth, photons))

    def tell(name: str, answer: np.ndarray | torch.Tensor) -> None:
        images = torch.as_tensor(np.asarray(answer)).float().reshape(clean.shape)
        scores = [psnr(image[None], exact[None]) for image, exact in zip(images, clean, strict=True)]
        print(f"{name:36}{np.mean(scores):7.2f} dB", flush=True)

    tell("noisy", noisy)
    widths = (1.0, 1.5, 2.0, 2.5, 3.0)
    filtered = {width: gaussian_filter(photons[index], (0, width, width)) for width in widths}
    best = min(filtered, key=lambda width: np.square(filtered[width] - truth[index]).mean())
    tell(f"Gaussian filter, {best} px", filtered[best])
    if importlib.util.find_spec("bm3d"):
        tell("BM3D", np.stack([bm3d_of_photons(photons[i]) for i in index]))
    tell("shipped weights, no training", pretrained_denoiser(as_stack(photons))(noisy))
    tell("shipped weights, 100 draws", posterior_mean(pretrained_sampler(as_stack(photons)), noisy, 100))
    sampler, student = load_sampler(folder), load_denoiser(folder)
    if not isinstance(sampler, NextPhoton):
        raise SystemExit(f"{folder}: is no run of NextPhoton; pass one of the recipe above")
    tell("GAP, one pass (predictive)", sampler.predictive(noisy))
    for n in (1, 10):
        tell(f"GAP, {n} draws", posterior_mean(sampler, noisy, n))
    tell("student of GAP (median)", student(noisy))


if __name__ == "__main__":
    main(*sys.argv[1:])
