"""DivNoising, a flat VAE that is smaller and faster than HDN, and a U-Net that learns the mean of its draws.

python recipes/divnoising_unet_l2.py                        the built-in specimen
python recipes/divnoising_unet_l2.py noisy.tif              your images
python recipes/divnoising_unet_l2.py noisy.tif clean.tif    your images, and how good the result is
"""

import sys
from pathlib import Path

import torch

from distill import evaluate, keep_freed_memory, predict, report, specimen, train
from losses import L2
from samplers import DivNoising, GaussianNoise
from students import UNet


def main(noisy=None, clean=None, *, out: str = "runs/divnoising_unet_l2", steps: int = 600) -> None:
    noise_model = None  # estimated from the noisy images
    if noisy is None:
        cells = specimen()
        noisy, clean = cells.noisy, cells.clean
        noise_model = GaussianNoise(gain=cells.gain, offset=cells.offset)

    # The published network. kl_warmup, in training steps, keeps its latents from collapsing.
    torch.manual_seed(0)
    sampler, student = DivNoising(noise_model, kl_warmup=steps // 4), UNet(filters=16)
    run = train(noisy, sampler, student, L2(), out, steps=steps, refine_steps=steps // 3)

    predict(run, noisy, f"{out}/denoised.tif", overwrite=True)
    evaluate(run, noisy, clean, frames=2)
    print(Path(out, "evaluation.md").read_text(encoding="utf-8"))
    print(f"student, denoised images, pictures and tables: {report(run)}")


if __name__ == "__main__":
    keep_freed_memory()
    main(*sys.argv[1:])
