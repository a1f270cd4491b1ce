"""Compares the estimated noise line with the variance of the noise, by decile of brightness (30 s, a core).

    DISTILL_TEST_DATA=... python benchmarks/noise_line.py

Reference: half the mean square of differences of successive frames, which slow drift does not reach.
"mean": variance about the mean of all 50, which drift raises at edges. The specimen: its true line.
The brightest decile is shown in three parts as well: it spans most of the grey values.
"""

import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import tifffile
import torch

from distill import specimen
from samplers import GaussianNoise
from samplers.noise import neighbour_correlation


def report(
    name: str, frames: np.ndarray, signal: np.ndarray, reference: np.ndarray, mean: np.ndarray
) -> None:
    """frames: what the line is estimated from; the rest: images of one shape."""
    line = GaussianNoise.estimate(frames)
    y, x = neighbour_correlation(frames)
    print(
        f"\n{name}: variance = {line.gain:.3f} * signal + {line.offset:.2f}; neighbours {y:.3f} y, {x:.3f} x"
    )
    print("  signal  reference      mean      line     ratio")
    edges = np.quantile(signal, [*np.linspace(0, 1, 11), 0.9, 0.95, 0.98, 1])
    for low, high in pairwise(edges):
        if high < low:  # back from 1 to 0.9
            continue
        inside = (signal >= low) & (signal <= high)
        level, true, about = (float(v[inside].mean()) for v in (signal, reference, mean))
        estimate = float(line.variance(torch.tensor(level)))
        print(f"{level:8.2f} {true:10.3f} {about:9.3f} {estimate:9.3f} {estimate / true:9.3f}", flush=True)


def main() -> None:
    for field in ("fov1", "fov19"):
        frames = tifffile.imread(Path(os.environ["DISTILL_TEST_DATA"]) / f"confocal_bpae_{field}_noisy.tif")
        x = frames.astype(np.float32)
        signal = x.mean(0)
        differences, mean = (np.diff(x, axis=0) ** 2).mean(0) / 2, x.var(0, ddof=1)
        report(f"{field}, 50 frames", frames, signal, differences, mean)
        report(f"{field}, 4 frames", frames[::13], signal, differences, mean)
        report(f"{field}, 1 frame", frames[25], signal, differences, mean)
    for photons in (5, 30, 300, 3000):
        cells = specimen(3, size=512, photons=photons)
        true = cells.gain * cells.clean + cells.offset
        report(
            f"specimen, {photons} photons", cells.noisy, cells.clean, true, (cells.noisy - cells.clean) ** 2
        )


if __name__ == "__main__":
    main()
