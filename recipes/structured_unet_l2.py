"""Row-correlated noise without any calibration: signal and noise are learnt together.

python recipes/structured_unet_l2.py                        the built-in specimen with line noise
python recipes/structured_unet_l2.py noisy.tif [clean.tif]  your images

Where repeats or frames of pure noise exist, a noise model fitted to them does better, and faster:
StabilizedSampler(CorrelatedNoise.from_noise(noise, signal)), from weights in the package.
"""

import sys

import torch

from distill import evaluate, predict, report, specimen, train
from distill.evaluation.tables import format_table
from distill.hardware import keep_freed_memory
from distill.images.sources import Images
from losses import L2
from samplers import JointNoiseVAE
from students import UNet


def main(out: str, noisy: Images | None = None, clean: Images | None = None, *, steps: int = 350) -> None:
    if noisy is None:
        cells = specimen(noise="lines")
        noisy, clean = cells.noisy, cells.clean

    torch.manual_seed(0)
    sampler = JointNoiseVAE("x", levels=4, latents=16, filters=32, blocks=2, code=32)
    student = UNet(filters=16)
    run = train(noisy, sampler, student, L2(), out, steps=steps, refine_steps=steps // 3, batch_size=4)

    predict(run, noisy, f"{out}/denoised.tif", overwrite=True)
    print(format_table(evaluate(run, noisy, clean, frames=2)))
    print(f"student, denoised images, pictures and tables: {report(run)}")


if __name__ == "__main__":
    keep_freed_memory()
    main("runs/structured_unet_l2", *sys.argv[1:])
