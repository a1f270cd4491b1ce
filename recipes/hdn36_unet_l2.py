"""HDN3-6 for structured noise: its two finest levels do not see the image, so few lines can pass.

python recipes/hdn36_unet_l2.py                        the built-in specimen with line noise
python recipes/hdn36_unet_l2.py noisy.tif              your images
python recipes/hdn36_unet_l2.py noisy.tif clean.tif    your images, and how good the result is

It leaves a fifth of the lines in the specimen; samplers that learn the noise leave less (docs/measured.md).
"""

import sys
from pathlib import Path
from typing import Any

import torch

from distill import evaluate, keep_freed_memory, predict, report, specimen, train
from losses import L2
from samplers import HDN, GaussianNoise
from students import UNet


def main(noisy=None, clean=None, *, out: str = "runs/hdn36_unet_l2", steps: int = 350) -> None:
    noise_model = None  # estimated from the noisy images: too small for correlated noise
    if noisy is None:
        cells = specimen(noise="lines")
        noisy, clean = cells.noisy, cells.clean
        noise_model = GaussianNoise(gain=cells.gain, offset=cells.offset)

    # Without a warm-up of the KL, networks of this size collapse to a constant image.
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"latents": 16, "filters": 32, "blocks": 2, "dropout": 0.0}
    sampler = HDN(noise_model, active_levels=range(3, 7), kl_warmup=steps // 2, **sizes)
    student = UNet(filters=16)
    run = train(noisy, sampler, student, L2(), out, steps=steps, refine_steps=steps // 3, batch_size=4)

    predict(run, noisy, f"{out}/denoised.tif", overwrite=True)
    evaluate(run, noisy, clean, frames=2)
    print(Path(out, "evaluation.md").read_text(encoding="utf-8"))
    print(f"student, denoised images, pictures and tables: {report(run)}")


if __name__ == "__main__":
    keep_freed_memory()
    main(*sys.argv[1:])
