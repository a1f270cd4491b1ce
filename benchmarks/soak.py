"""Trains, saves, loads, predicts and evaluates repeatedly in one process: does its memory stay constant?

    python benchmarks/soak.py --minutes 60

Linux with glibc only. A round takes seconds: two runs on small images, one of HDN and a U-Net from nothing
and one of the networks that ship with the package; then one pass, draws in tiles and an evaluation of each,
from its files. After every round a line of runs/soak/memory.csv has the resident memory, the objects that
Python's garbage collector knows, the open files and the threads.

A column is flat when, over the last half of the rounds, the line through it rises less than its values
scatter around that line (standard deviation), or by less than 0.1 %. Exits 1 if one is not.
"""

import argparse
import contextlib
import csv
import ctypes
import gc
import io
import logging
import shutil
import time
from pathlib import Path

import numpy as np
import torch

from distill import evaluate, predict, specimen, train
from losses import L2, Quantiles
from samplers import HDN, StabilizedSampler
from students import StabilizedUNet, UNet

SIZE, FRAMES = 64, 4
COLUMNS = ("resident_mb", "objects", "files", "threads")


def one_round(noisy: np.ndarray, clean: np.ndarray, folder: Path) -> None:
    small = HDN(levels=2, latents=4, filters=8, blocks=1)
    for sampler, student, loss in (
        (small, UNet(depth=2, filters=8, out_channels=3), Quantiles()),
        (StabilizedSampler(), StabilizedUNet(), L2()),
    ):
        shutil.rmtree(folder, ignore_errors=True)
        run = folder / "run"
        train(noisy, sampler, student, loss, run, steps=4, refine_steps=4, batch_size=2, patch_size=32,
              validate_every=4)  # fmt: skip
        predict(run, noisy, folder / "student.tif")
        predict(run, noisy, folder / "draws.tif", draws=2, tile=64, halo=0)
        evaluate(run, noisy, clean, draws=(1, 2), frames=1)


def measured() -> tuple[float, ...]:
    """One value for each of COLUMNS."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what glibc keeps for later is not held
    process = Path("/proc/self")
    status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
    resident = float(status["VmRSS"].split()[0]) / 1024
    return (
        resident,
        float(len(gc.get_objects())),
        float(len([*(process / "fd").iterdir()])),
        float(status["Threads"]),
    )


def flat(values: np.ndarray) -> tuple[float, float, bool]:
    """Of the last half of the values: how far the line through them rises, their scatter, whether flat."""
    half = values[len(values) // 2 :]
    place = np.arange(len(half))
    slope, start = np.polyfit(place, half, 1)
    scatter = float((half - start - slope * place).std())
    rise = float(slope * place[-1])
    return rise, scatter, rise <= max(scatter, 1e-3 * half.mean())


def soak(minutes: float, out: Path) -> list[tuple[float, ...]]:
    """(minutes since the start, *COLUMNS) after each round."""
    cells = specimen(FRAMES, SIZE)
    rows: list[tuple[float, ...]] = []
    began = time.monotonic()
    with open(out / "memory.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("minutes", *COLUMNS))
        while not rows or rows[-1][0] < minutes:
            torch.manual_seed(0)
            with contextlib.redirect_stderr(io.StringIO()):  # progress bars
                one_round(cells.noisy, cells.clean, out / "round")
            rows.append(((time.monotonic() - began) / 60, *measured()))
            writer.writerow(f"{value:.2f}" for value in rows[-1])
            file.flush()
    shutil.rmtree(out / "round")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--out", type=Path, default=Path("runs/soak"))
    chosen = parser.parse_args()
    logging.disable(logging.WARNING)
    chosen.out.mkdir(parents=True, exist_ok=True)
    rows = np.array(soak(chosen.minutes, chosen.out))
    print(f"{len(rows)} rounds in {rows[-1, 0]:.1f} minutes; of the last half:")
    sound = True
    for name, values in zip(COLUMNS, rows[:, 1:].T, strict=True):
        rise, scatter, is_flat = flat(values)
        sound &= is_flat
        print(
            f"{name:12} from {values[0]:10.1f} to {values[-1]:10.1f}, rises {rise:8.2f} at a scatter of "
            f"{scatter:7.2f}: {'flat' if is_flat else 'NOT FLAT'}"
        )
    raise SystemExit(not sound)


if __name__ == "__main__":
    main()
