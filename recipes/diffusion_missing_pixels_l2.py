"""Fills in missing pixels and denoises, first with a diffusion model of deepinv, then in one pass.

pip install 'posterior-distill[diffusion]'
python recipes/diffusion_missing_pixels_l2.py [noisy.tif mask.tif]

The mask is 1 for known pixels and 0 for missing ones: one mask for all frames, or one for each. Both networks
get it as a condition. Every draw is a complete diffusion, as in diffusion_unet_l2.py, so use a GPU.
"""

import sys
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distill import keep_freed_memory, predict, read, report, specimen, train
from losses import L2
from samplers import DiffusionSampler
from students import UNet


def main(
    noisy=None,
    mask=None,
    *,
    out: str = "runs/diffusion_missing_pixels_l2",
    steps: int = 2000,
    denoiser: nn.Module | None = None,
) -> None:
    # An optional dependency.
    from deepinv import physics  # pyright: ignore[reportMissingImports]
    from deepinv.models import DRUNet  # pyright: ignore[reportMissingImports]
    from deepinv.optim.data_fidelity import L2 as DataFidelity  # pyright: ignore[reportMissingImports]
    from deepinv.sampling import DiffPIR  # pyright: ignore[reportMissingImports]

    images = np.asarray(read(noisy).frames[:, 0] if noisy else specimen().noisy, np.float32)
    rng = np.random.default_rng(0)
    known = np.asarray(read(mask).frames[:, 0]) > 0 if mask else rng.random((1, *images.shape[1:])) > 0.3
    everywhere = np.broadcast_to(known, images.shape)
    # Missing pixels contain no information. Values far from the others would dominate the standardization.
    images = np.where(known, images, images[everywhere].mean())

    # The model needs images in [0, 1]; 1 % of the known pixels are below and 1 % above. For white noise of
    # std 1, the median absolute difference of neighbours is 0.954.
    black, white = np.percentile(images[everywhere], (1, 99)).tolist()
    both = everywhere[..., 1:] & everywhere[..., :-1]
    sigma = float(np.median(abs(np.diff(images))[both])) / 0.954 / (white - black)

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if denoiser is None:  # for natural images with one channel; downloads its weights
        denoiser = DRUNet(in_channels=1, out_channels=1, pretrained="download", device=device)
    diffusion = DiffPIR(denoiser, DataFidelity(), sigma=sigma, max_iter=30, device=device)

    def holes(y: Tensor, known: Tensor) -> nn.Module:
        return physics.Inpainting(y.shape[1:], mask=known, noise_model=physics.GaussianNoise(sigma))

    sampler = DiffusionSampler(diffusion, black=black, white=white, physics=holes)

    torch.manual_seed(0)
    options: dict[str, Any] = {"steps": 0, "refine_steps": steps, "batch_size": 4, "micro_batch": 4}
    run = train(images, sampler, UNet(2, filters=16), L2(), out, conditions=known, **options)
    predict(run, images, f"{out}/filled.tif", conditions=known, overwrite=True)
    print(f"student, filled images and curves: {report(run)}")


if __name__ == "__main__":
    keep_freed_memory()
    main(*sys.argv[1:])
