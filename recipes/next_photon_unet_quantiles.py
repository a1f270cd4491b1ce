"""Photon counting: a network learns the position of the next photon, and a student predicts its intervals.

python recipes/next_photon_unet_quantiles.py                                  synthetic photons: 3 minutes
python recipes/next_photon_unet_quantiles.py bright.tif dim.tif [clean.tif]    yours, 1 count per photon

The network learns from bright images, which are noisy, too. It draws from the posterior of dim ones by adding
photons until they are ten times brighter.
"""

import sys
from pathlib import Path

import numpy as np
import torch

from distill import evaluate, keep_freed_memory, predict, read, report, specimen, train
from losses import Quantiles
from samplers import NextPhoton, WithLevel
from students import LightUNet


def main(
    bright=None, dim=None, clean=None, *, out: str = "runs/next_photon_unet_quantiles", steps: int = 1000
) -> None:
    if bright:
        photons = np.asarray(read(bright).frames)[:, 0]
    else:
        cells, rng = specimen(), np.random.default_rng(0)
        clean = (cells.clean - cells.clean.min()) / 10  # expected photons, about 6 at the brightest pixels
        dim = rng.poisson(clean).astype(np.float32)
        photons = rng.poisson(10 * clean).astype(np.float32)

    # Trains the sampler alone: patches, cross entropy, Adam. Your own network can be used instead.
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = WithLevel(LightUNet(2, 2))
    sampler = NextPhoton(network, gain=1.0).to(device)
    optimizer = torch.optim.Adam(sampler.parameters(), 1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        y, x = (torch.randint(n - 63, ()).item() for n in photons.shape[1:])
        patches = torch.from_numpy(photons[torch.randint(len(photons), (4,)), None, y : y + 64, x : x + 64])
        optimizer.zero_grad()
        sampler.cross_entropy(patches.to(device)).backward()
        optimizer.step()
        schedule.step()

    # Frozen (steps=0). Each of its draws takes 25 passes, the student's quantiles take one.
    loss = Quantiles()
    student = LightUNet(1, len(loss.outputs))
    run = train(dim, sampler, student, loss, out, steps=0, refine_steps=steps // 4, batch_size=4)

    predict(run, dim, f"{out}/denoised.tif", overwrite=True)
    evaluate(run, dim, clean, frames=2, draws=(1, 10))
    print(Path(out, "evaluation.md").read_text(encoding="utf-8"))
    print(f"student, denoised images, pictures and tables: {report(run)}")


if __name__ == "__main__":
    keep_freed_memory()
    main(*sys.argv[1:])
