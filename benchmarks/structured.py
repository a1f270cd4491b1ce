"""Structured noise: HDN, HDN3-6, StructuredNoiseVAE and JointNoiseVAE, with a student each.

    python benchmarks/structured.py lines            the built-in specimen with line noise
    DISTILL_TEST_DATA=... python benchmarks/structured.py g      (or r) real widefield BPAE

Prints one table and writes runs/structured/KIND/students.png. "noise left" is the slope of the
student's error on the true noise after a mean over 1 x 9 pixels (lines) or 3 x 3: 1 where the
structured noise passes whole, 0 where it is gone. The autoregressive noise model is fitted to the true
noise of four of the images (lines) or, where there is no truth, to noisy minus the mean of the frames.
"""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch
from scipy.ndimage import uniform_filter

from distill import evaluate, predict, specimen, train
from distill.hardware import keep_freed_memory
from distill.images.statistics import spread
from distill.noise_fitting.fit import Context
from distill.plots.pictures import comparison
from losses import L2
from samplers import (
    HDN,
    AutoregressiveNoise,
    GaussianNoise,
    JointNoiseVAE,
    PosteriorSampler,
    StructuredNoiseVAE,
)
from students import UNet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("kind", choices=["lines", "g", "r"])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--draws", type=int, nargs="+", default=[1, 10, 100])
    parser.add_argument("--samplers", nargs="+")
    options = parser.parse_args()
    keep_freed_memory()

    if options.kind == "lines":
        cells = specimen(noise="lines")
        noisy, clean, window = cells.noisy, cells.clean, (1, 9)
        context: Context = "row"
        white = GaussianNoise(gain=cells.gain, offset=cells.offset)
        noise = torch.from_numpy(noisy[:4] - clean[:4])
    else:
        folder = Path(os.environ["DISTILL_TEST_DATA"])
        noisy = tifffile.imread(folder / f"widefield_bpae_{options.kind}_noisy.tif").astype(np.float32)
        mean = tifffile.imread(folder / f"widefield_bpae_{options.kind}_mean50.tif").astype(np.float32)
        clean, window = np.broadcast_to(mean, noisy.shape), (3, 3)
        context = "image"
        residual = (noisy - noisy.mean(0)) * np.sqrt(len(noisy) / (len(noisy) - 1))
        noise = torch.from_numpy(residual)
        white = GaussianNoise(float(residual.std()))

    sizes: dict[str, Any] = dict(levels=6, latents=16, filters=32, blocks=2, dropout=0.0)
    samplers: dict[str, Callable[[], PosteriorSampler]] = {
        "HDN": lambda: HDN(white, **sizes),
        "HDN3-6": lambda: HDN(white, active_levels=range(3, 7), kl_warmup=options.steps // 2, **sizes),
        "StructuredNoiseVAE": lambda: StructuredNoiseVAE(
            AutoregressiveNoise.fit(noise, context, steps=500), **sizes
        ),
        "JointNoiseVAE": lambda: JointNoiseVAE(code=32, **sizes),
    }
    index = spread(len(noisy), 1)[0]
    residual = noisy[index] - clean[index]
    true_noise = uniform_filter(residual, window)  # pyright: ignore[reportArgumentType]  # a size per axis
    pictures = {"noisy": noisy[index]}
    columns = "".join(f"{n:>4} draws" for n in options.draws)
    print(f"{'':20}{'input':>8}{columns}{'student':>9}   noise left")
    for name in options.samplers or samplers:
        torch.manual_seed(0)
        folder = f"runs/structured/{options.kind}/{name}"
        run = train(noisy, samplers[name](), UNet(filters=16), L2(), folder, steps=options.steps,
                    refine_steps=2 * options.steps // 3, batch_size=4)  # fmt: skip
        scores = [row["psnr_mean"] for row in evaluate(run.path, noisy, clean, frames=1, draws=options.draws)]
        denoised = predict(run.path, noisy[index : index + 1])[0]
        error = denoised - clean[index]
        left = (error * true_noise).mean() / (true_noise**2).mean()
        pictures[f"{name}\n{scores[-1]:.2f} dB, noise left {left:.2f}"] = denoised
        line = "".join(f"{score:10.2f}" for score in scores[1:-1])
        print(f"{name:20}{scores[0]:8.2f}{line}{scores[-1]:9.2f}{left:13.2f}", flush=True)
    comparison(Path(f"runs/structured/{options.kind}/students.png"), {**pictures, "truth": clean[index]})


if __name__ == "__main__":
    main()
