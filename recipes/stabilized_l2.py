"""Denoises in one pass, with a sampler and a student that start from the weights in the package.

python recipes/stabilized_l2.py                        the built-in specimen: 2 minutes of one core
python recipes/stabilized_l2.py noisy.tif              your images
python recipes/stabilized_l2.py noisy.tif clean.tif    your images, and how good the result is

If the noise of neighbouring pixels is correlated, a noise model of repeats or dark frames improves the result
(`distill noise-model fit --kind correlated`); structured_unet_l2.py learns one together with the signal.
"""

import sys
from pathlib import Path

import torch

from distill import evaluate, keep_freed_memory, predict, report, specimen, train
from losses import L2
from samplers import GaussianNoise, StabilizedSampler
from students import StabilizedUNet


def main(noisy=None, clean=None, *, out: str = "runs/stabilized_l2", steps: int = 300) -> None:
    noise_model = None  # estimated from the noisy images
    if noisy is None:
        cells = specimen()
        noisy, clean = cells.noisy, cells.clean
        noise_model = GaussianNoise(gain=cells.gain, offset=cells.offset)

    torch.manual_seed(0)
    sampler, student = StabilizedSampler(noise_model), StabilizedUNet()
    run = train(noisy, sampler, student, L2(), out, steps=steps, refine_steps=steps, batch_size=4)

    predict(run, noisy, f"{out}/denoised.tif", overwrite=True)
    evaluate(run, noisy, clean, frames=2)
    print(Path(out, "evaluation.md").read_text(encoding="utf-8"))
    print(f"student, denoised images, pictures and tables: {report(run)}")


if __name__ == "__main__":
    keep_freed_memory()
    main(*sys.argv[1:])
