"""Structured noise: HDN, HDN3-6, StructuredNoiseVAE and JointNoiseVAE, with a student each.

    python tests/benchmarks/structured.py lines            the built-in specimen with line noise
    DISTILL_TEST_DATA=... python tests/benchmarks/structured.py g      (or r) real widefield BPAE

Small networks; pictures in runs/structured. The autoregressive noise model is fitted to the true
noise of four of the images (lines) or, where there is no truth, to noisy minus the mean of the frames.
"""

import os
import sys
from pathlib import Path

import numpy as np
import tifffile
import torch

from distill import evaluate, specimen, train
from distill.evaluation import format_table
from losses import L2
from samplers import HDN, AutoregressiveNoise, GaussianNoise, JointNoiseVAE, StructuredNoiseVAE
from students import UNet

kind, steps = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 350
if kind == "lines":
    cells = specimen(noise="lines")
    noisy, clean, context = cells.noisy, cells.clean, "row"
    white = GaussianNoise(gain=cells.gain, offset=cells.offset)
    noise = torch.from_numpy(noisy[:4] - clean[:4])
else:
    folder = Path(os.environ["DISTILL_TEST_DATA"])
    noisy = tifffile.imread(folder / f"widefield_bpae_{kind}_noisy.tif").astype(np.float32)
    clean, context = tifffile.imread(folder / f"widefield_bpae_{kind}_mean50.tif"), "image"
    residual = (noisy - noisy.mean(0)) * np.sqrt(len(noisy) / (len(noisy) - 1))
    noise = torch.from_numpy(residual)
    white = GaussianNoise(float(residual.std()))

sizes = dict(latents=16, filters=32, blocks=2, dropout=0.0)
samplers = {
    "HDN": lambda: HDN(white, levels=6, **sizes),
    "HDN3-6": lambda: HDN(white, levels=6, active_levels=range(3, 7), **sizes),
    "StructuredNoiseVAE": lambda: StructuredNoiseVAE(
        AutoregressiveNoise.fit(noise, context, steps=500), levels=4, **sizes
    ),
    "JointNoiseVAE": lambda: JointNoiseVAE(levels=4, code=32, **sizes),
}
for name, sampler in samplers.items():
    torch.manual_seed(0)
    run = train(noisy, sampler(), UNet(filters=16), L2(), f"runs/structured/{kind}/{name}", steps=steps,
                refine_steps=steps // 3, batch_size=4)  # fmt: skip
    print(f"\n{kind}, {name}")
    print(format_table(evaluate(run.path, noisy, clean, frames=1, draws=[1, 10])), flush=True)
