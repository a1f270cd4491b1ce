"""Trains HDN and a student together on noisy images. The student then denoises in one pass.

python recipes/hdn_unet_l2.py                        the built-in specimen: 3 minutes on two cores
python recipes/hdn_unet_l2.py noisy.tif              your images
python recipes/hdn_unet_l2.py noisy.tif clean.tif    your images, and how good the result is
"""

import sys
from pathlib import Path

import torch

from distill import evaluate, keep_freed_memory, predict, report, specimen, train
from losses import L2
from samplers import HDN, LIGHT, GaussianNoise
from students import StabilizedUNet


def main(noisy=None, clean=None, *, out: str = "runs/hdn_unet_l2", steps: int = 600) -> None:
    noise_model = None  # estimated from the noisy images
    if noisy is None:
        cells = specimen()
        noisy, clean = cells.noisy, cells.clean
        noise_model = GaussianNoise(gain=cells.gain, offset=cells.offset)

    # Light networks, for a CPU; the student starts from the weights that ship with the package. With a
    # GPU and hours to spend, HDN() and UNet(shared_convs=True) are the paper's.
    torch.manual_seed(0)
    sampler, student = HDN(noise_model, **LIGHT), StabilizedUNet()
    run = train(noisy, sampler, student, L2(), out, steps=steps, refine_steps=steps // 3, batch_size=4)

    predict(run, noisy, f"{out}/denoised.tif", overwrite=True)
    evaluate(run, noisy, clean, frames=2)
    print(Path(out, "evaluation.md").read_text(encoding="utf-8"))
    print(f"student, denoised images, pictures and tables: {report(run)}")


if __name__ == "__main__":
    keep_freed_memory()
    main(*sys.argv[1:])
