"""Real data: train on FOV 1's 50 noisy frames alone, report on FOV 1 and FOV 19 (20 minutes, two cores).

    DISTILL_TEST_DATA=... python tests/benchmarks/confocal.py [steps refine_steps]

Noise model: variance linear in the signal, estimated from the noisy frames. The scene drifts over
the 50 frames, so the draws are compared on the middle one; the student is scored on every tenth too.
"""

import os
import sys
import time
from pathlib import Path

from distill import evaluate, train
from distill.tables import format_table
from losses import L2
from samplers import HDN
from students import UNet

data = Path(os.environ["DISTILL_TEST_DATA"])
steps, refine_steps = map(int, sys.argv[1:] or (1000, 500))
out = Path("runs/confocal")

started = time.monotonic()
training = data / "confocal_bpae_fov1_noisy.tif"
sampler = HDN(levels=4, latents=16, filters=32, blocks=2, dropout=0.0)
run = train(training, sampler, UNet(filters=16), L2(), out, steps=steps,
            refine_steps=refine_steps, batch_size=4)  # fmt: skip
print(f"trained in {time.monotonic() - started:.0f} s")
for fov in ("fov1", "fov19"):
    stack, truth = (data / f"confocal_bpae_{fov}_{kind}.tif" for kind in ("noisy", "mean50"))
    print(f"\n{fov}, the middle frame")
    print(format_table(evaluate(run.path, stack, truth, out / fov, frames=1)), flush=True)
    print(f"{fov}, 5 of 50 frames")
    print(format_table(evaluate(run.path, stack, truth, out / f"{fov}_5", frames=5, draws=[1])), flush=True)
