"""Predicts the mode of every pixel's posterior: a student with Tukey's biweight loss, from draws on disk.

python recipes/stabilized_tukey.py                        the built-in specimen
python recipes/stabilized_tukey.py noisy.tif              your images
python recipes/stabilized_tukey.py noisy.tif clean.tif    your images, and how good the result is

Tukey's loss needs several draws of each patch to estimate their spread, so the sampler is trained first with
an L1 student, and its draws are then stored.
"""

import sys
from pathlib import Path

import torch

from distill import cache_draws, evaluate, keep_freed_memory, predict, report, specimen, train
from losses import L1, Tukey
from samplers import GaussianNoise, StabilizedSampler
from students import StabilizedUNet


def main(noisy=None, clean=None, *, out: str = "runs/stabilized_tukey", steps: int = 300) -> None:
    noise_model = None  # estimated from the noisy images
    if noisy is None:
        cells = specimen()
        noisy, clean = cells.noisy, cells.clean
        noise_model = GaussianNoise(gain=cells.gain, offset=cells.offset)

    torch.manual_seed(0)
    sampler, student = StabilizedSampler(noise_model), StabilizedUNet()
    run = train(noisy, sampler, student, L1(), f"{out}/l1", steps=steps, refine_steps=0, batch_size=4)

    cached = cache_draws(run, noisy, f"{out}/draws", draws=16)  # init="none" keeps the student's weights
    train(noisy, cached, student, Tukey(), out, steps=steps, refine_steps=0, batch_size=4, init="none")

    predict(out, noisy, f"{out}/denoised.tif", overwrite=True)
    evaluate(run, noisy, clean, frames=2)
    evaluate(out, noisy, clean, frames=2, draws=[])
    for folder in (run.path, Path(out)):
        print((folder / "evaluation.md").read_text(encoding="utf-8"))
    print(f"student, denoised images, pictures and tables: {report([out, run])}")


if __name__ == "__main__":
    keep_freed_memory()
    main(*sys.argv[1:])
