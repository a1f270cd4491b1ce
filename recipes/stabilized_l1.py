"""Predicts the pixel-wise median of the draws in one pass, by a student of the absolute error.

python recipes/stabilized_l1.py                        the built-in specimen
python recipes/stabilized_l1.py noisy.tif              your images
python recipes/stabilized_l1.py noisy.tif clean.tif    your images, and how good the result is
"""

import sys
from pathlib import Path

import torch

from distill import evaluate, keep_freed_memory, predict, report, specimen, train
from losses import L1
from samplers import GaussianNoise, StabilizedSampler
from students import StabilizedUNet


def main(noisy=None, clean=None, *, out: str = "runs/stabilized_l1", steps: int = 300) -> None:
    noise_model = None  # estimated from the noisy images
    if noisy is None:
        cells = specimen()
        noisy, clean = cells.noisy, cells.clean
        noise_model = GaussianNoise(gain=cells.gain, offset=cells.offset)

    torch.manual_seed(0)
    sampler, student = StabilizedSampler(noise_model), StabilizedUNet()
    run = train(noisy, sampler, student, L1(), out, steps=steps, refine_steps=steps, batch_size=4)

    predict(run, noisy, f"{out}/denoised.tif", overwrite=True)
    evaluate(run, noisy, clean, frames=2)
    print(Path(out, "evaluation.md").read_text(encoding="utf-8"))
    print(f"student, denoised images, pictures and tables: {report(run)}")


if __name__ == "__main__":
    keep_freed_memory()
    main(*sys.argv[1:])
