"""Compares other settings with those of `distill train --budget`, at equal CPU time.

    DISTILL_TEST_DATA=... python benchmarks/settings_in_time.py confocal --minutes 3
    python benchmarks/settings_in_time.py specimen --minutes 3

Each setting gets as many of its steps as fit into the CPU time of one core. PSNR
as in quality.py: FOV 1 (trained on its noisy frames alone), FOV 19 (never seen), the built-in specimen. One
seed.
"""

import argparse
import tempfile
import time
from typing import Any

import numpy as np
import torch
from quality import Case, built_in, confocal
from time_to_quality import score

from distill import DirectDenoiser, train
from distill.hardware import keep_freed_memory
from distill.training.budget import ALONE
from losses import L2
from samplers import GaussianNoise, StabilizedSampler
from students import StabilizedUNet

SETTINGS: dict[str, dict[str, Any]] = {
    "budget's": {},
    "batch 4": dict(batch_size=4),
    "batch 16": dict(batch_size=16),
    "4 patches of 96 px": dict(batch_size=4, patch_size=96),
    "student's rate x 2": dict(student_lr=1e-3),
    "student's rate / 2": dict(student_lr=2.5e-4),
    "from draws and light": dict(self_supervised=0.5),
    "from draws alone": dict(self_supervised=0.0),
    "both networks to the end": dict(both=1.0),
    "student alone": dict(both=0.0),
}


def trained(
    images: np.ndarray, noise: GaussianNoise | None, minutes: float, settings: dict[str, Any]
) -> tuple[DirectDenoiser, float, tuple[int, int]]:
    """(the student, CPU seconds, steps of both networks and of the student alone)."""
    settings = dict(settings)
    share = settings.pop("both", ALONE)  # of the time

    def run(steps: int, refine_steps: int) -> tuple[DirectDenoiser, float]:
        torch.manual_seed(0)
        started = time.process_time()
        run = train(images, StabilizedSampler(noise), StabilizedUNet(), L2(), tempfile.mkdtemp(), steps=steps,
                    refine_steps=refine_steps, validate_every=10**6, **settings)  # fmt: skip
        return run.denoiser, time.process_time() - started

    run(1, 1)  # warms up
    once = run(1, 1)[1]
    each = [(run(*counts)[1] - once) / 20 for counts in ((21, 1), (1, 21))]
    steps = [
        round(part * (60 * minutes - once) / cost)
        for part, cost in zip((share, 1 - share), each, strict=True)
    ]
    denoiser, cpu = run(*steps)
    return denoiser, cpu, (steps[0], steps[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=["confocal", "specimen"])
    parser.add_argument("--minutes", type=float, default=3)
    parser.add_argument("--only", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    cases: list[Case]
    images, cases = confocal() if options.what == "confocal" else built_in()
    noise = cases[0][3] if options.what == "specimen" else None
    for name in options.only:
        denoiser, cpu, (steps, refine_steps) = trained(images, noise, options.minutes, SETTINGS[name])
        scores = "".join(f"{key:>10} {value:.2f}" for key, value in score(denoiser, cases).items())
        print(f"{name:26}{scores}   {cpu / 60:.1f} min, {steps} + {refine_steps} steps", flush=True)


if __name__ == "__main__":
    main()
