"""Predicts the 5 % and 95 % quantiles of every pixel and the median in one pass.

python recipes/stabilized_quantiles.py                        the built-in specimen
python recipes/stabilized_quantiles.py noisy.tif              your images
python recipes/stabilized_quantiles.py noisy.tif clean.tif    your images, and how good the result is

They are quantiles of the sampler's posterior. Calibration scales them so that they contain the truth as often
as they state. It needs images with ground truth that were not used in training: here, other fields of the
specimen.
"""

import sys
from pathlib import Path

import torch

from distill import calibrate, evaluate, keep_freed_memory, predict, report, specimen, train
from losses import Quantiles
from samplers import GaussianNoise, StabilizedSampler
from students import StabilizedUNet


def main(noisy=None, clean=None, *, out: str = "runs/stabilized_quantiles", steps: int = 300) -> None:
    noise_model, is_specimen = None, noisy is None  # the noise model is estimated from your images
    if noisy is None:
        cells = specimen()
        noisy, clean = cells.noisy, cells.clean
        noise_model = GaussianNoise(gain=cells.gain, offset=cells.offset)

    torch.manual_seed(0)
    loss = Quantiles()
    sampler, student = StabilizedSampler(noise_model), StabilizedUNet(out_channels=len(loss.outputs))
    train(noisy, sampler, student, loss, out, steps=steps, refine_steps=steps, batch_size=4)

    if is_specimen:
        other, test = specimen(4, seed=1), specimen(4, seed=2)
        result = calibrate(out, other.noisy, other.clean, test_noisy=test.noisy, test_clean=test.clean)
        print(
            f"{result.level:.0%} intervals contained {result.before:.1%} of the truth, now {result.after:.1%}"
        )
    predict(out, noisy, f"{out}/denoised.tif", overwrite=True)
    evaluate(out, noisy, clean, frames=2)
    print(Path(out, "evaluation.md").read_text(encoding="utf-8"))
    print(f"student, denoised images, pictures and tables: {report(out)}")


if __name__ == "__main__":
    keep_freed_memory()
    main(*sys.argv[1:])
