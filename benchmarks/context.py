"""Measures what neighbouring frames in time improve for HDN and its student, at equal steps.

    python benchmarks/context.py --steps 500 1200 --contexts none T2 --seeds 0 1

The specimen: 24 frames of 128 x 128 px. A smooth background that never moves, and in the upper left quarter
12 blobs (Gaussians with a std of 2 to 5 px) that move straight at 0.5 px per frame and are reflected at the
quarter's edges. Gaussian noise of 20 counts, on a signal of about 60 to 330. With and without a context both
networks train with the same seeds, steps and numbers of patches. Flicker is the std over time of a result
where the signal is constant, as the root mean square over these pixels; 0 is ideal. Rivals: BM3D of each
frame and of the running mean of five frames (`pip install bm3d`, not for commercial use).
"""

import argparse
import importlib.util
import itertools
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distill import predict, psnr, train
from distill.images.context import plane_count
from samplers import HDN, LIGHT, GaussianNoise
from students import LightUNet

FRAMES, SIDE, BLOBS, SPEED, NOISE = 24, 128, 12, 0.5, 20.0
STILL = 0.05  # counts: the most that the signal of a pixel of the background changes


def specimen(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(noisy, clean), each (T, Y, X) float32."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIDE, :SIDE]
    texture = sum(
        np.sin(2 * np.pi * (fy * y + fx * x) + phase)
        for fy, fx, phase in zip(*rng.uniform(-0.06, 0.06, (2, 8)), rng.uniform(0, 2 * np.pi, 8), strict=True)
    )
    background = np.asarray(130 + 10 * texture)
    start, angle = rng.uniform(0, SIDE // 2, (BLOBS, 2)), rng.uniform(0, 2 * np.pi, BLOBS)
    velocity = SPEED * np.stack([np.sin(angle), np.cos(angle)], axis=1)
    width, height = rng.uniform(2, 5, BLOBS), rng.uniform(40, 90, BLOBS)
    frames = []
    for t in range(FRAMES):
        place = start + t * velocity
        place = SIDE // 2 - abs(SIDE // 2 - place % SIDE)
        frame = background.copy()
        for (cy, cx), w, h in zip(place, width, height, strict=True):
            frame += h * np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * w**2))
        frames.append(frame)
    clean = np.array(frames, np.float32)
    return clean + rng.normal(0, NOISE, clean.shape).astype(np.float32), clean


def measured(context: str | None, seed: int, steps: int) -> dict[str, float]:
    noisy, clean = specimen(seed)
    torch.manual_seed(seed)
    seen, began = plane_count(context), time.process_time()
    options: dict[str, Any] = LIGHT | {"filters": 12, "latents": 4, "blocks": 1, "kl_warmup": steps // 4}
    sampler = HDN(GaussianNoise(NOISE), in_channels=seen, **options)
    student = LightUNet(in_channels=seen, width=16, depth=2)
    with tempfile.TemporaryDirectory() as folder:
        run = train(noisy, sampler, student, out=Path(folder) / "run", steps=steps, refine_steps=steps,
                    validate_every=10**6, context=context, seed=seed, device="cpu",
                    batch_size=4, patch_size=48, precision="fp32")  # fmt: skip
        found = {"seconds": time.process_time() - began}
        for name, draws in {"student": 0, "10 draws": 10}.items():
            answer = predict(run, noisy, draws=draws, device="cpu", precision="fp32")
            found |= scores(name, answer, clean)
    return found


def scores(name: str, answer: np.ndarray, clean: np.ndarray) -> dict[str, float]:
    still = np.ptp(clean, axis=0) < STILL
    flicker = float(np.sqrt(answer.var(axis=0)[still].mean()))
    return {
        f"{name}, PSNR": psnr(torch.from_numpy(answer), torch.from_numpy(clean)),
        f"{name}, flicker": flicker,
    }


def rivals(seed: int) -> dict[str, float]:
    from quality import bm3d_anscombe

    noisy, clean = specimen(seed)
    padded = np.pad(noisy, ((2, 2), (0, 0), (0, 0)), mode="reflect")  # as the context is mirrored
    mean = np.lib.stride_tricks.sliding_window_view(padded, 5, axis=0).mean(axis=-1)
    found = {}
    for name, frames, noise in (("BM3D", noisy, NOISE), ("BM3D of five frames' mean", mean, NOISE / 5**0.5)):
        answer = np.stack([bm3d_anscombe(frame, 0.0, noise**2)["exact"] for frame in frames])
        found |= scores(name, answer.astype(np.float32), clean)
    return found


def show(label: str, rows: list[dict[str, float]]) -> None:
    means = (f"{key} {np.mean([row[key] for row in rows]):.2f}" for key in rows[0])
    print(f"{label:12}", ", ".join(means), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="HDN and its student, with neighbouring frames and without.")
    parser.add_argument("--steps", type=int, nargs="+", default=[500], help="of both, then of the student")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--contexts", nargs="+", default=["none", "T1", "T2"])
    arguments = parser.parse_args()
    if importlib.util.find_spec("bm3d"):
        show("rivals", [rivals(seed) for seed in arguments.seeds])
    for steps, context in itertools.product(arguments.steps, arguments.contexts):
        used = None if context == "none" else context
        show(f"{steps} {context}", [measured(used, seed, steps) for seed in arguments.seeds])


if __name__ == "__main__":
    main()
