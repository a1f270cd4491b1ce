"""Compares losses of one and of two processes with the same batches: python benchmarks/several_processes.py

Random numbers differ between processes. So the first trainings have none, and their losses must agree number
by number; the last, an HDN with its random draws, is compared over SEEDS. An HDN's biases in front of batch
normalisation have no gradient but rounding errors, which AdamW scales up to its rate and SGD does not.
"""

import json
import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from distill import specimen, train
from losses import L2
from samplers import HDN, LIGHT, FunctionSampler, GaussianNoise, PosteriorSampler, StabilizedSampler
from samplers.noise.split import LightSplit
from students import StabilizedUNet, UNet

SEEDS = range(4)
SHOWN = ("sampler_loss", "student_loss", "val_sampler_loss", "val_student_loss")
TRAINING: dict[str, Any] = dict(
    batch_size=8, micro_batch=2, patch_size=32, validate_every=10, device="cpu", precision="fp32"
)


def hdn(dropout: float) -> HDN:
    options: dict[str, Any] = LIGHT | dict(filters=8, dropout=dropout, patch_size=32, kl_warmup=0)
    return HDN(GaussianNoise(10.0), **options)


def without_draws(self: LightSplit, noisy: Tensor, share: float = 0.5) -> tuple[Tensor, Tensor]:
    return noisy + 5, noisy - 5


def trainings(out: Path) -> None:
    noisy = specimen(4, 96).noisy
    torch.manual_seed(0)
    draws, light = torch.randn_like, LightSplit.forward
    torch.randn_like, LightSplit.forward = torch.zeros_like, without_draws
    blur = FunctionSampler(lambda noisy: avg_pool2d(noisy, 3, 1, 1))
    exact: dict[str, tuple[PosteriorSampler, nn.Module, str]] = {
        "FunctionSampler + UNet": (blur, UNet(depth=2, filters=8), "AdamW"),
        "StabilizedSampler + StabilizedUNet": (StabilizedSampler(), StabilizedUNet(), "AdamW"),
        "HDN without draws + UNet, SGD": (hdn(0.0), UNet(depth=2, filters=8), "SGD"),
        "HDN without draws + UNet, AdamW": (hdn(0.0), UNet(depth=2, filters=8), "AdamW"),
    }
    for name, (sampler, student, optimizer) in exact.items():
        train(noisy, sampler, student, L2(), out / name, steps=20, refine_steps=10, optimizer=optimizer,
              **TRAINING)  # fmt: skip
    torch.randn_like, LightSplit.forward = draws, light
    for seed in SEEDS:
        torch.manual_seed(seed)
        train(noisy, hdn(0.2), UNet(depth=2, filters=8), L2(), out / f"HDN, seed {seed}", steps=60,
              refine_steps=20, seed=seed, **TRAINING)  # fmt: skip


def rows(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def table(one: Path, two: Path) -> str:
    lines = ["| training | step | loss | one process | two | difference |", "|---|---|---|---|---|---|"]
    for run in sorted(each.name for each in one.iterdir() if "seed" not in each.name):
        largest = 0.0
        for a, b in zip(rows(one / run), rows(two / run), strict=True):
            for key in (k for k in SHOWN if k in a):
                largest = max(largest, abs(a[key] - b[key]) / abs(a[key]))
                lines.append(f"| {run} | {a['step']} | {key} | {a[key]:.6f} | {b[key]:.6f} "
                             f"| {abs(a[key] - b[key]):.1e} |")  # fmt: skip
        lines.append(f"| {run} | | largest relative difference | | | {largest:.1e} |")
    for key in SHOWN[2:]:
        found = [[rows(out / f"HDN, seed {seed}")[-1][key] for seed in SEEDS] for out in (one, two)]
        means, spreads = np.mean(found, axis=1), np.std(found, axis=1, ddof=1)
        lines.append(f"| HDN, {len(SEEDS)} seeds | last | {key} | {means[0]:.4f} +- {spreads[0]:.4f} "
                     f"| {means[1]:.4f} +- {spreads[1]:.4f} | {abs(means[0] - means[1]):.1e} |")  # fmt: skip
    return "\n".join(lines)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        logging.disable()
        trainings(Path(sys.argv[1]))
    else:
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        with tempfile.TemporaryDirectory() as folder:
            outs = [Path(folder) / name for name in ("one", "two")]
            for out, launcher in zip(outs, ([], torchrun), strict=True):
                command = [sys.executable, *launcher, __file__, str(out)]
                environment = os.environ | {"OMP_NUM_THREADS": "1"}
                subprocess.run(command, check=True, env=environment, stderr=subprocess.DEVNULL)
            print(table(*outs))
