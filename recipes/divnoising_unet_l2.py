"""As hdn_unet_l2.py, with DivNoising: a flat VAE that is smaller and faster than HDN, and blurrier.

python recipes/divnoising_unet_l2.py [noisy.tif [clean.tif]]
"""

import sys

import torch

from distill import evaluate, predict, report, specimen, train
from distill.evaluation.tables import format_table
from distill.hardware import keep_freed_memory
from distill.images.sources import Images
from losses import L2
from samplers import DivNoising, GaussianNoise
from students import UNet


def main(out: str, noisy: Images | None = None, clean: Images | None = None, *, steps: int = 600) -> None:
    noise_model = None  # estimated from the noisy images
    if noisy is None:
        cells = specimen()
        noisy, clean = cells.noisy, cells.clean
        noise_model = GaussianNoise(gain=cells.gain, offset=cells.offset)

    # The published network. kl_warmup keeps its latents in use; it counts training steps.
    torch.manual_seed(0)
    sampler = DivNoising(noise_model, kl_warmup=steps // 4)
    student = UNet(filters=16)
    run = train(noisy, sampler, student, L2(), out, steps=steps, refine_steps=steps // 3)

    predict(run, noisy, f"{out}/denoised.tif", overwrite=True)
    print(format_table(evaluate(run, noisy, clean, frames=2)))
    print(f"student, denoised images, pictures and tables: {report(run)}")


if __name__ == "__main__":
    keep_freed_memory()
    main("runs/divnoising_unet_l2", *sys.argv[1:])
