"""Short trainings on extreme images: none may end with NaN, or with a loss above the initial one.

Above means by more than 1 %, because the loss of good initial weights can only vary around its minimum.

python benchmarks/stability.py [--only hot zeros ...] [--samplers light ...] [--seeds 10] [--steps 50]

Each line is one finished training; failures are marked. --seeds 4:7 means 4, 5 and 6, to continue after a
stop. Real images come from the folder DISTILL_TEST_DATA; without it these inputs are omitted.
"""

import argparse
import logging
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch
from torch import Tensor

from distill import UserError, specimen, train
from losses import L2
from samplers import HDN, LIGHT, PosteriorSampler, StabilizedSampler
from students import StabilizedUNet

SIZE, FRAMES = 128, 3


def cells(seed: int) -> np.ndarray:
    return specimen(FRAMES, SIZE, seed=seed).noisy


def hot(seed: int) -> np.ndarray:
    """One pixel in 10,000 is stuck at 65535."""
    images, rng = cells(seed), np.random.default_rng(seed)
    return np.where(rng.random(images.shape[1:]) < 1e-4, np.uint16(65535), images)


def zeros(seed: int) -> np.ndarray:
    """Single photons in an empty image; the last frame has none."""
    images = np.random.default_rng(seed).poisson((cells(seed) / 400.0) ** 4)
    images[-1] = 0
    return images.astype(np.uint16)


def offset(seed: int) -> np.ndarray:
    return cells(seed) + np.uint16(10_000)


def clipped(seed: int) -> np.ndarray:
    """8 bits, a fifth of the pixels too bright and a fifth too dark."""
    images = cells(seed).astype(np.float32)
    low, high = np.quantile(images, [0.2, 0.8])
    return ((images - low) / (high - low) * 255).clip(0, 255).astype(np.uint8)


def bead(seed: int) -> np.ndarray:
    """One bright bead in read noise."""
    y, x = np.mgrid[:SIZE, :SIZE] - SIZE // 2
    signal = 100 + 3e4 * np.exp(-(x**2 + y**2) / 8)
    rng = np.random.default_rng(seed)
    return (rng.poisson(signal) + rng.normal(0, 3, (FRAMES, SIZE, SIZE))).clip(0).astype(np.uint16)


def unit(seed: int) -> np.ndarray:
    images = cells(seed).astype(np.float32)
    return (images - images.min()) / np.ptp(images)


def real(name: str) -> Callable[[int], np.ndarray]:
    def crop(seed: int) -> np.ndarray:
        y, x = np.random.default_rng(seed).integers(512 - SIZE, size=2)
        images = tifffile.imread(Path(os.environ["DISTILL_TEST_DATA"]) / f"{name}_noisy.tif")
        return images[:FRAMES, y : y + SIZE, x : x + SIZE]

    return crop


INPUTS = {
    "hot": hot,
    "zeros": zeros,
    "offset": offset,
    "clipped": clipped,
    "bead": bead,
    "unit": unit,
    "fov1": real("confocal_bpae_fov1"),
    "fov19": real("confocal_bpae_fov19"),
    "widefield": real("widefield_bpae_g"),
    "specimen": cells,
}


class Watched(PosteriorSampler):
    """Measures its own loss on the same patches at the first step and whenever it is asked."""

    patches: Tensor
    start: float | None = None

    def training_step(self, noisy: Tensor) -> tuple[Tensor, Tensor]:
        if self.start is None and self.training:
            self.start = 0.0
            self.start = self.now()
        return super().training_step(noisy)

    @torch.no_grad()
    def now(self) -> float:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.train()
            return float(super().training_step(self.patches)[0])


class WatchedHDN(Watched, HDN): ...


class WatchedStabilized(Watched, StabilizedSampler): ...


SAMPLERS: dict[str, Callable[[], Watched]] = {
    "stabilized": WatchedStabilized,
    "light": lambda: WatchedHDN(**LIGHT),
    "wide": lambda: WatchedHDN(levels=5, latents=16, filters=64, blocks=1, dropout=0.0, unshuffle=2),
}


def training(images: np.ndarray, kind: str, seed: int, steps: int, **settings: Any) -> tuple[str, bool]:
    """One training -> (its row of the table, whether it is sound)."""
    torch.manual_seed(seed)
    tiles = torch.from_numpy(images.astype(np.float32)).unfold(1, 64, 64).unfold(2, 64, 64)
    sampler = SAMPLERS[kind]()
    sampler.patches = tiles.reshape(-1, 1, 64, 64).contiguous(memory_format=torch.channels_last)
    rows: list[dict[str, Any]] = []
    began, error = time.process_time(), ""
    settings = dict(refine_steps=0, batch_size=4, micro_batch=4, validate_every=steps // 2) | settings
    with tempfile.TemporaryDirectory() as out:
        try:
            run = train(images, sampler, StabilizedUNet(), L2(), out, steps=steps, seed=seed,
                        on_log=rows.append, **settings)  # fmt: skip
            noisy = sampler.patches[:4]
            with torch.inference_mode():
                outputs = [run.denoiser(noisy), run.sampler.sample(noisy, 2)]
            error = "" if all(v.isfinite().all() for v in outputs) else "output not finite"
        except UserError as refused:
            error = str(refused)
    start, end = sampler.start or np.nan, np.nan if error else sampler.now()
    student = [row["student_loss"] for row in rows] or [np.nan]
    numbers = [value for row in rows for value in row.values()]
    if not error and not np.isfinite(numbers).all():
        error = "metrics not finite: " + ", ".join(
            {k for row in rows for k, v in row.items() if not np.isfinite(v)}
        )
    elif not error and sampler.start is None:
        error = "sampler stays as shipped: its noise is a guess"
    elif not error and not end <= start + 0.01 * abs(start):
        error = "ends above its start"
    skipped = sum(row.get("skipped", 0) for row in rows)
    row = (f"{start:11.3f}{end:11.3f}{student[0]:10.3f}{np.mean(student[-3:]):10.3f}{skipped:6d}"
           f"{time.process_time() - began:7.1f} s  {error}")  # fmt: skip
    untrained = sampler.start is None  # refused in one line, or frozen: nothing is lost
    return row, "not finite" not in error and (not error or untrained)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=INPUTS, default=list(INPUTS))
    parser.add_argument("--samplers", nargs="+", choices=SAMPLERS, default=list(SAMPLERS))
    parser.add_argument("--seeds", default="10")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--lr", type=float)
    chosen = parser.parse_args()
    logging.disable(logging.WARNING)
    first, _, last = chosen.seeds.rpartition(":")
    settings = {} if chosen.lr is None else {"lr": chosen.lr}
    failures = []
    print(f"{'':26}{'first':>11}{'last':>11}{'student':>10}{'last':>10}{'skip':>6}", flush=True)
    for name in chosen.only:
        if INPUTS[name].__name__ == "crop" and "DISTILL_TEST_DATA" not in os.environ:
            print(f"{name:26}DISTILL_TEST_DATA is not set: left out")
            continue
        for kind in chosen.samplers:
            for seed in range(int(first or 0), int(last)):
                row, sound = training(INPUTS[name](seed), kind, seed, chosen.steps, **settings)
                print(f"{name:10} {kind:10} {seed:3} {row}", flush=True)
                failures += [] if sound else [f"{name} {kind} {seed}"]
    print(f"{len(failures)} failed" + (f": {', '.join(failures)}" if failures else ""))


if __name__ == "__main__":
    main()
