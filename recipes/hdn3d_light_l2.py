"""Denoise a volume with networks that see its planes together: HDN and a light U-Net in three dimensions.

python recipes/hdn3d_light_l2.py                        the built-in volume: 5 minutes of one core
python recipes/hdn3d_light_l2.py noisy.tif              your stack, with an axis Z
python recipes/hdn3d_light_l2.py noisy.tif clean.tif    your stack, and how good the result is
"""

import sys
from pathlib import Path
from typing import Any

import torch

from distill import Stack, evaluate, keep_freed_memory, predict, report, specimen_volume, train
from losses import L2
from samplers import HDN, LIGHT, GaussianNoise
from students import LightUNet


def main(noisy=None, clean=None, *, out: str = "runs/hdn3d_light_l2", steps: int = 600) -> None:
    noise_model = None  # estimated from the noisy planes
    if noisy is None:
        cells = specimen_volume()
        noisy, clean = Stack(cells.noisy, "ZYX"), Stack(cells.clean, "ZYX")
        noise_model = GaussianNoise(gain=cells.gain, offset=cells.offset)

    # dims=3 is all that makes them networks of volumes. They halve every axis twice less than those of images
    # do, since a stack has fewer planes than rows.
    torch.manual_seed(0)
    sampler = HDN(noise_model, **LIGHT | dict[str, Any](levels=2, dims=3))
    student = LightUNet(dims=3, depth=2)
    run = train(
        noisy, sampler, student, L2(), out, steps=steps, refine_steps=steps // 2, batch_size=2, patch_size=32
    )

    predict(run, noisy, f"{out}/denoised.tif", overwrite=True)
    evaluate(run, noisy, clean, frames=1, draws=[1, 10])
    print(Path(out, "evaluation.md").read_text(encoding="utf-8"))
    print(f"student, denoised volume, pictures and tables: {report(run)}")


if __name__ == "__main__":
    keep_freed_memory()
    main(*sys.argv[1:])
