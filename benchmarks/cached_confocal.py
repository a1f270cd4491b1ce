"""Draws of one sampler for confocal BPAE, which the benchmarks of losses and of students share."""

import os
from pathlib import Path

import numpy as np

from distill import cache_draws, read
from distill.images.statistics import some_frames
from samplers import CachedDraws

DATA = Path(os.environ.get("DISTILL_TEST_DATA", "."))
TEACHER = "runs/confocal"  # of table1.py
FRAMES, DRAWS = 8, 32


def stack(fov: str) -> tuple[Path, Path]:
    """(noisy, mean of 50 frames) of a field of view; fov1 is trained on, fov19 is not."""
    return DATA / f"confocal_bpae_{fov}_noisy.tif", DATA / f"confocal_bpae_{fov}_mean50.tif"


def images_and_draws(teacher: str = TEACHER) -> tuple[np.ndarray, CachedDraws]:
    """(8, 1, Y, X) frames of FOV 1, spread evenly, and 32 draws of each: half a minute, once."""
    images = some_frames(read(stack("fov1")[0]), FRAMES)
    folder = f"{teacher}/cached_draws"
    if (Path(folder) / "draws.json").exists():
        return images, CachedDraws(folder)
    return images, cache_draws(teacher, images, folder, draws=DRAWS)
