"""Compares students of all losses for one sampler: which central tendency suits your images?

python recipes/compare_losses.py                        the built-in specimen
python recipes/compare_losses.py noisy.tif [clean.tif]  your images

The sampler is trained and draws only once, and all students learn from the same draws. The result is
runs/compare_losses/report.html.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distill import (
    cache_draws,
    evaluate_all,
    keep_freed_memory,
    predict,
    read,
    report,
    specimen,
    train,
)
from losses import L1, L2, Features, JointMode, MeanVariance, Quantiles, Tukey, WeightedSum
from samplers import GaussianNoise, StabilizedSampler
from students import StabilizedUNet

LOSSES = {
    "mean (L2)": L2(),
    "median (L1)": L1(),
    "mode (Tukey)": Tukey(),
    "joint mode (JointMode)": JointMode(),
    "quantiles": Quantiles(),
    "mean and std": MeanVariance(),
    "perceptual": WeightedSum([L1(), Features()], [1.0, 0.1]),
}


def main(noisy=None, clean=None, *, out: str = "runs/compare_losses", steps: int = 300) -> None:
    noise_model = None  # estimated from the noisy images
    if noisy is None:
        cells = specimen()
        images, truth = cells.noisy[:, None], cells.clean[:, None]
        noise_model = GaussianNoise(gain=cells.gain, offset=cells.offset)
    else:
        images = np.asarray(read(noisy).frames)
        truth = None if clean is None else np.asarray(read(clean).frames)

    options: dict[str, Any] = {"steps": steps, "refine_steps": 0, "batch_size": 4}
    torch.manual_seed(0)
    sampler = StabilizedSampler(noise_model)
    teacher = train(images, sampler, StabilizedUNet(), L2(), f"{out}/sampler", **options)
    draws = cache_draws(teacher.path, images, f"{out}/draws", draws=16)

    runs = []
    for name, loss in LOSSES.items():
        torch.manual_seed(0)  # the same student for each
        student = StabilizedUNet(out_channels=len(loss.outputs))
        runs.append(train(images, draws, student, loss, f"{out}/{name}", **options).path)
        predict(runs[-1], images, f"{out}/{name}/denoised.tif", overwrite=True)
    evaluate_all(runs, [(images, truth)], out, draws=[], frames=1)
    if truth is not None:
        print(Path(out, "table1.md").read_text(encoding="utf-8"))
    print(f"tables and pictures of each: {report(runs, f'{out}/report.html', overwrite=True)}")


if __name__ == "__main__":
    keep_freed_memory()
    main(*sys.argv[1:])
