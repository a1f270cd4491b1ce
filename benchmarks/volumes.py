"""A volume denoised by networks of volumes, against networks of its planes that took the same CPU time.

    OMP_NUM_THREADS=1 python benchmarks/volumes.py --minutes 2 --seeds 0

One built-in volume (`specimen_volume`, 24 x 128 x 128 px) is what all are trained on, without its clean one,
and a second, which only students and rivals denoise, is never seen. A kind's steps follow from the CPU time
of its own steps, seven tenths for co-training and three for the student alone. PSNR by the paper's
definition, over the whole volume. BM3D plane by plane (`pip install bm3d`, for non-commercial use) in the
Anscombe domain of the true noise line, where it is installed. Appends to runs/volumes/volumes.csv.
"""

import argparse
import csv
import importlib.util
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distill import Run, Stack, predict, psnr, specimen_volume, train
from distill.datasets import Specimen
from distill.hardware import keep_freed_memory
from losses import L2
from samplers import HDN, LIGHT, GaussianNoise
from students import LightUNet

OUT, DRAWS, TRIAL = Path("runs/volumes"), (1, 10, 100), 12
SETTINGS: dict[str, dict[str, Any]] = {
    "2-D": {"batch_size": 8, "patch_size": 64},
    "3-D": {"batch_size": 2, "patch_size": 32},
}


def trained(kind: str, volume: Specimen, seed: int, steps: int, refine_steps: int, out: Path) -> Run:
    """Batches of either kind have 32768 pixels; those of the coarsest level have a side of 8 px in volumes
    and of 16 px in planes, of which a volume has few."""
    torch.manual_seed(seed)
    noise_model = GaussianNoise(gain=volume.gain, offset=volume.offset)
    smaller: dict[str, Any] = {"levels": 2, "dims": 3} if kind == "3-D" else {}
    sampler = HDN(noise_model, **(LIGHT | smaller))
    student = LightUNet(dims=3, depth=2) if kind == "3-D" else LightUNet()
    return train(
        Stack(volume.noisy, "ZYX", "volume"), sampler, student, L2(), out, steps=steps,
        refine_steps=refine_steps, val_fraction=0, validate_every=10**6, seed=seed, device="cpu",
        precision="fp32", **SETTINGS[kind],
    )  # fmt: skip


def step_seconds(kind: str, volume: Specimen, steps: int, refine_steps: int) -> float:
    """CPU seconds of one of the last half of the steps, for the first ones also warm up."""
    seconds = []
    for factor in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            started = time.process_time()
            trained(kind, volume, 0, factor * steps, factor * refine_steps, Path(folder) / "run")
            seconds.append(time.process_time() - started)
    return (seconds[1] - seconds[0]) / (steps + refine_steps)


def bm3d_of_planes(volume: Specimen) -> np.ndarray:
    from quality import bm3d_anscombe

    planes = volume.noisy.astype("f4")
    return np.stack([bm3d_anscombe(plane, volume.gain, volume.offset)["exact"] for plane in planes])


def record(kind: str, minutes: float, seed: int, image: str, volumes: list[Specimen], answers: list) -> None:
    values = [
        psnr(torch.from_numpy(np.array(answer, "f4")), torch.from_numpy(volume.clean))
        for answer, volume in zip(answers, volumes, strict=True)
    ]
    row = [kind, minutes, seed, image, *(f"{value:.2f}" for value in values)]
    OUT.mkdir(parents=True, exist_ok=True)
    with open(OUT / "volumes.csv", "a", newline="") as file:
        csv.writer(file).writerow(row)
    print(*row, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=2)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--kinds", nargs="+", default=["rivals", *SETTINGS])
    chosen = parser.parse_args()
    volumes = [specimen_volume(24, 128, seed=seed) for seed in (0, 1)]
    if "rivals" in chosen.kinds:
        record("noisy", 0, 0, "", volumes, [volume.noisy for volume in volumes])
        if importlib.util.find_spec("bm3d"):
            record("BM3D of planes", 0, 0, "", volumes, [bm3d_of_planes(volume) for volume in volumes])
    for kind in [kind for kind in SETTINGS if kind in chosen.kinds]:
        both, alone = step_seconds(kind, volumes[0], TRIAL, 0), step_seconds(kind, volumes[0], 0, TRIAL)
        counts = round(42 * chosen.minutes / both), round(18 * chosen.minutes / alone)
        for seed in chosen.seeds:
            started = time.process_time()
            run = trained(kind, volumes[0], seed, *counts, OUT / f"{kind}-{chosen.minutes:g}-{seed}")
            print(kind, "steps", counts, "CPU seconds", round(time.process_time() - started), flush=True)
            for n in (0, *DRAWS):
                judged = volumes[:1] if n else volumes
                stacks = [Stack(volume.noisy, "ZYX", "volume") for volume in judged]
                answers = [predict(run, stack, draws=n, device="cpu", precision="fp32") for stack in stacks]
                record(kind, chosen.minutes, seed, f"{n} draws" if n else "student", judged, answers)


if __name__ == "__main__":
    keep_freed_memory()
    main()
