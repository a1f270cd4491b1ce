"""Students of posteriors with closed forms against the exact functionals (about 6 minutes, two cores).

python tests/benchmarks/functionals.py
"""

import tempfile

import torch
from torch import nn

from distill import psnr, train
from losses import L1, L2
from samplers import LinearGaussianField, SkewedPixels
from students import UNet


def distil(sampler, noisy, student, loss, steps, **settings):
    settings = dict(refine_steps=0, val_fraction=0.0, validate_every=10**6) | settings
    return train(noisy, sampler, student, loss, tempfile.mkdtemp(), steps=steps, **settings).denoiser


def wiener() -> None:
    """The L2 student of a Gaussian field, on larger fields that it never saw (the filter knows that
    a field is periodic, the student does not: on small ones that is worth 0.1 dB to the filter).
    Draws cost next to nothing here, so it learns from 16 of each patch."""
    torch.manual_seed(0)
    field = LinearGaussianField()
    noisy = field.observe(field.prior(64, (128, 128)))
    student = distil(
        field, noisy, UNet(depth=3, filters=16), L2(), 450, patch_size=128, batch_size=4, draws=16
    )
    clean = field.prior(2, (512, 512))
    noisy = field.observe(clean)
    with torch.inference_mode():
        images = {"noisy": noisy, "Wiener filter": field.posterior_mean(noisy), "student": student(noisy)}
    for name, image in images.items():
        print(f"Gaussian field  {name:14} {psnr(image, clean):6.2f} dB", flush=True)


def skewed() -> None:
    """L2 must find the mean and L1 the median; errors in percent of the posterior's std."""
    torch.manual_seed(0)
    sampler = SkewedPixels()
    noisy = 100 + 30 * torch.randn(8, 64, 64)
    x = noisy[:, None]
    std = sampler.variance(x).sqrt()
    exact = {"mean": sampler.mean(x), "median": sampler.median(x)}
    for loss in (L2(), L1()):
        pixelwise = nn.Sequential(nn.Conv2d(1, 64, 1), nn.ReLU(), nn.Conv2d(64, 64, 1), nn.ReLU(),
                                  nn.Conv2d(64, 1, 1))  # fmt: skip
        student = distil(sampler, noisy, pixelwise, loss, 1500, batch_size=8, micro_batch=8)
        with torch.no_grad():
            errors = {k: ((student(x) - v) / std).square().mean().sqrt() for k, v in exact.items()}
        figures = ", ".join(f"{100 * e:.1f} % from the {name}" for name, e in errors.items())
        print(f"skewed pixels   {type(loss).__name__} student is {figures}")


if __name__ == "__main__":
    wiener()
    skewed()
