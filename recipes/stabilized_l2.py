"""Denoise in one pass, with a sampler and a student that start from the weights in the package.

python recipes/stabilized_l2.py                        the built-in specimen: 2 minutes of one core
python recipes/stabilized_l2.py noisy.tif              your images
python recipes/stabilized_l2.py noisy.tif clean.tif    your images, and how good the result is

Where neighbouring pixels' noise is correlated, a noise model of repeats or dark frames makes it better
(`distill noise-model fit --kind correlated`); structured_unet_l2.py learns one along with the signal.
"""

import sys

import torch

from distill import evaluate, predict, report, specimen, train
from distill.evaluation.tables import format_table
from distill.hardware import keep_freed_memory
from distill.images.sources import Images
from losses import L2, Loss
from samplers import GaussianNoise, StabilizedSampler
from students import StabilizedUNet


def main(
    loss: Loss, out: str, noisy: Images | None = None, clean: Images | None = None, *, steps: int = 300
) -> None:
    noise_model = None  # estimated from the noisy images
    if noisy is None:
        cells = specimen()
        noisy, clean = cells.noisy, cells.clean
        noise_model = GaussianNoise(gain=cells.gain, offset=cells.offset)

    torch.manual_seed(0)
    sampler = StabilizedSampler(noise_model)
    student = StabilizedUNet(out_channels=len(loss.outputs))
    run = train(noisy, sampler, student, loss, out, steps=steps, refine_steps=steps, batch_size=4)

    predict(run, noisy, f"{out}/denoised.tif", overwrite=True)
    print(format_table(evaluate(run, noisy, clean, frames=2)))
    print(f"student, denoised images, pictures and tables: {report(run)}")


if __name__ == "__main__":
    keep_freed_memory()
    main(L2(), "runs/stabilized_l2", *sys.argv[1:])
