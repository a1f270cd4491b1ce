"""Distils a pretrained diffusion model (DiffPIR in deepinv) into a U-Net that denoises in one pass.

pip install 'posterior-distill[diffusion]'
python recipes/diffusion_unet_l2.py [noisy.tif]

Every draw is a complete diffusion, and the student learns from `steps * 4` patches of them, so use a GPU.
"""

import sys
from typing import Any

import numpy as np
import torch
from torch import nn

from distill import keep_freed_memory, predict, read, report, specimen, train
from losses import L2
from samplers import DiffusionSampler, GaussianNoise
from students import UNet


def main(
    noisy=None,
    *,
    out: str = "runs/diffusion_unet_l2",
    steps: int = 2000,
    denoiser: nn.Module | None = None,
) -> None:
    # An optional dependency.
    from deepinv.models import DRUNet  # pyright: ignore[reportMissingImports]
    from deepinv.optim.data_fidelity import L2 as DataFidelity  # pyright: ignore[reportMissingImports]
    from deepinv.sampling import DiffPIR  # pyright: ignore[reportMissingImports]

    # The model needs images in [0, 1]; 1 % of the pixels are below and 1 % above.
    images = np.asarray(read(noisy).frames) if noisy else specimen().noisy
    black, white = np.percentile(images, (1, 99)).tolist()
    noise_std = float(GaussianNoise.estimate(images).variance(torch.tensor(images.mean())).sqrt())

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if denoiser is None:  # for natural images with one channel; downloads its weights
        denoiser = DRUNet(in_channels=1, out_channels=1, pretrained="download", device=device)
    diffusion = DiffPIR(denoiser, DataFidelity(), max_iter=30, device=device)
    sampler = DiffusionSampler(diffusion, black=black, white=white, noise_std=noise_std)

    torch.manual_seed(0)
    options: dict[str, Any] = {"steps": steps, "refine_steps": 0, "batch_size": 4, "micro_batch": 4}
    run = train(noisy or images, sampler, UNet(filters=16), L2(), out, **options)
    predict(run, noisy or images, f"{out}/denoised.tif", overwrite=True)
    print(f"student, denoised images and curves: {report(run)}")


if __name__ == "__main__":
    keep_freed_memory()
    main(*sys.argv[1:])
