"""Compares other settings with those of `distill train --budget`, at equal time.

    DISTILL_TEST_DATA=... python benchmarks/settings_in_time.py confocal --minutes 3
    python benchmarks/settings_in_time.py specimen --minutes 3

Each setting gets the same budget, which counts wall-clock time: nothing else should run on the core. PSNR
as in quality.py: FOV 1 (trained on its noisy frames alone), FOV 19 (never seen), the built-in specimen. One
seed.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from quality import Case, built_in, confocal
from time_to_quality import score

from distill import DirectDenoiser, train
from distill.hardware import keep_freed_memory
from distill.training import budget
from distill.training.budget import ALONE
from distill.training.resume import stored_settings
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
) -> tuple[DirectDenoiser, float, dict[str, Any]]:
    """(the student, CPU seconds, the settings that its checkpoint holds)."""
    settings, out = dict(settings), Path(tempfile.mkdtemp())
    budget.ALONE = settings.pop("both", ALONE)
    torch.manual_seed(0)
    started = time.process_time()
    run = train(
        images, StabilizedSampler(noise), StabilizedUNet(), L2(), out, budget=f"{minutes}min", **settings
    )
    return run.denoiser, time.process_time() - started, stored_settings(out)


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
        denoiser, cpu, used = trained(images, noise, options.minutes, SETTINGS[name])
        scores = "".join(f"{key:>10} {value:.2f}" for key, value in score(denoiser, cases).items())
        print(
            f"{name:26}{scores}   {cpu / 60:.1f} min, {used['steps']} + {used['refine_steps']} steps",
            flush=True,
        )


if __name__ == "__main__":
    main()
