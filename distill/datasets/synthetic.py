"""The built-in data set: fields of view of a synthetic fluorescent tissue, with camera noise.

Each field shows packed cells (membrane, nucleus, filaments, vesicles, haze), blurred by the PSF of a
microscope. It is drawn larger and cropped, so that structures cross the border as in a real image.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from numpy.random import Generator

from distill.datasets.canvas import (
    blur,
    five_nearest,
    jittered_lattice,
    nearest_value,
    sigmoid,
    smooth,
    splat,
    unit,
)
from distill.errors import UserError

MARGIN, PSF = 32, 1.1  # px; margin that is drawn and cropped, and standard deviation of the PSF
GAIN, BLACK_LEVEL, READ_NOISE = 2.0, 100.0, 1.6  # counts per photon, counts, photons; similar to sCMOS
LINE_STD, LINE_CORRELATION = 8.0, 0.95  # counts; correlation of neighbours in a row


@dataclass(frozen=True)
class Specimen:
    """Fields of view in raw camera counts, where Var[noisy | clean] = gain * clean + offset."""

    noisy: np.ndarray  # (n, size, size) uint16, or float32 for noise="gaussian"
    clean: np.ndarray  # (n, size, size) float32, E[noisy | clean]
    gain: float
    offset: float  # negative if the black level outweighs the read noise


def specimen(
    n: int = 20,
    size: int = 256,
    *,
    seed: int = 0,
    photons: float = 30.0,
    noise: Literal["poisson-gaussian", "gaussian", "lines"] = "poisson-gaussian",
    sigma: float = 25.0,
) -> Specimen:
    """Makes synthetic fields of view with noise.

    Field i depends on seed, i and size, not on n. The same seed gives the same fields under any noise.

    Args:
        n: number of fields.
        size: side of a field in pixels, at least 32.
        noise: "poisson-gaussian" has shot noise, Gaussian read noise, a gain, a black level and rounding to
            uint16 (input PSNR about 20 dB). "gaussian" is the usual benchmark, fields scaled to 0..255 plus
            N(0, sigma^2), as unclipped float32 (20.2 dB at sigma 25). "lines" adds zero-mean noise that is
            correlated along the rows to that of the camera, as float32; gain and offset then give the
            variance of both together at one pixel.
        photons: expected photons at the brightest pixel of each field.
        sigma: standard deviation of "gaussian" noise.
        seed: seed of the fields and of the noise.
    """
    kinds = {
        "poisson-gaussian": partial(camera, photons=photons),
        "gaussian": partial(_additive, sigma=sigma),
        "lines": partial(_lines, photons=photons),
    }
    if n < 1 or size < 32 or not 0 < photons <= 5000 or not sigma >= 0 or noise not in kinds:
        raise UserError(
            f"specimen: got {n=}, {size=}, {photons=}, {sigma=}, {noise=}; pass "
            f"n >= 1, size >= 32, 0 < photons <= 5000, sigma >= 0, noise in {[*kinds]}"
        )
    streams = [np.random.default_rng([seed, i]) for i in range(n)]  # so that a larger n only appends fields
    pairs = [kinds[noise](rng, _field_of_view(rng, size)) for rng in streams]
    noisy, clean = (np.stack(images) for images in zip(*pairs, strict=True))
    if noise == "gaussian":
        return Specimen(noisy, clean, gain=0.0, offset=float(sigma) ** 2)
    # Var = GAIN^2 (photons + READ_NOISE^2) + rounding, and photons = (clean - BLACK_LEVEL) / GAIN.
    offset = (GAIN * READ_NOISE) ** 2 + 1 / 12 - GAIN * BLACK_LEVEL
    return Specimen(noisy, clean, GAIN, offset + (LINE_STD**2 if noise == "lines" else 0))


def camera(rng: Generator, signal: np.ndarray, photons: float) -> tuple[np.ndarray, np.ndarray]:
    """(noisy uint16, clean float32) of a signal of any shape, in raw counts."""
    expected = photons * signal / signal.max()
    electrons = rng.poisson(expected) + rng.normal(0, READ_NOISE, expected.shape)
    counts = np.rint(BLACK_LEVEL + GAIN * electrons).clip(0, 2**16 - 1).astype(np.uint16)
    return counts, (BLACK_LEVEL + GAIN * expected).astype(np.float32)


def _lines(rng: Generator, signal: np.ndarray, photons: float) -> tuple[np.ndarray, np.ndarray]:
    counts, clean = camera(rng, signal, photons)
    lines = rng.normal(0, LINE_STD * np.sqrt(1 - LINE_CORRELATION**2), signal.shape)
    lines[:, 0] *= 1 / np.sqrt(1 - LINE_CORRELATION**2)  # stationary from the first column on
    for x in range(1, lines.shape[1]):
        lines[:, x] += LINE_CORRELATION * lines[:, x - 1]
    return (counts + lines).astype(np.float32), clean


def _additive(rng: Generator, signal: np.ndarray, sigma: float) -> tuple[np.ndarray, np.ndarray]:
    clean = (255 * (signal - signal.min()) / np.ptp(signal)).astype(np.float32)
    return (clean + rng.normal(0, sigma, clean.shape)).astype(np.float32), clean


def _field_of_view(rng: Generator, size: int) -> np.ndarray:
    """Noise-free fluorescence (size, size) in arbitrary units, positive everywhere."""
    side = size + 2 * MARGIN
    cells = _Cells(rng, side)
    nuclei = cells.nuclei(rng)
    cytoplasm = sigmoid(cells.depth - 1.5) * (1 - np.minimum(nuclei / 0.3, 1))
    haze = cytoplasm * cells.per_cell(0.17 * cells.level) * np.exp(0.35 * smooth(rng, side, 4))
    focus = cells.membranes(rng) + nuclei + haze
    focus += cells.filaments(rng, cytoplasm) + cells.vesicles(rng, cytoplasm)
    # Light from above and below the focal plane: a confocal pinhole rejects most of it.
    image = blur(blur(focus, PSF).T, PSF).T + 0.12 * blur(blur(focus, 9).T, 9).T
    return (image + 0.05 * np.exp(0.3 * smooth(rng, side, 60)))[MARGIN:-MARGIN, MARGIN:-MARGIN]


class _Cells:
    """The cell of every pixel of a canvas (side, side), and the pixel's position inside that cell."""

    def __init__(self, rng: Generator, side: int):
        self.seeds = jittered_lattice(rng, side, spacing=rng.uniform(54, 64))  # (K, 2)
        # Bending space before it is partitioned makes the straight edges of Voronoi cells curved.
        fine, wide = (np.stack([smooth(rng, side, scale) for _ in "yx"]) for scale in (14, 35))
        self.warp = 3 * fine + 7 * wide  # (2, side, side), px
        position = np.mgrid[:side, :side] + self.warp
        squared, near = five_nearest(position, self.seeds)
        apart = np.hypot(*(self.seeds[near[1:]] - self.seeds[near[:1]]).transpose(3, 0, 1, 2))
        to_edge = (squared[1:] - squared[:1]) / (2 * apart)
        # A soft minimum over the neighbours rounds the corners and leaves gaps where cells meet.
        depth = -2.5 * np.log(np.exp(to_edge / -2.5).sum(0)) - 0.9
        slope = np.hypot(*np.gradient(depth))  # differs from 1 where space is stretched
        self.depth = depth / np.maximum(slope, 0.6)  # px inside the membrane, negative outside
        self.cell = near[0]
        self.level = rng.lognormal(0, 0.25, len(self.seeds))  # expression of the label
        self.axes = rng.uniform([[12], [9.5]], [[16], [13]], (2, len(self.seeds)))  # px, nucleus
        self.centre = self.seeds + rng.uniform(-4, 4, self.seeds.shape)  # centre of the nucleus
        self.inside = position - self.per_cell(self.centre.T)

    def per_cell(self, values: np.ndarray) -> np.ndarray:
        return values[..., self.cell]  # (..., K) -> (..., side, side)

    def membranes(self, rng: Generator) -> np.ndarray:
        fine, wide = (smooth(rng, len(self.cell), scale) for scale in (6, 30))
        rim = np.exp(-0.5 * (self.depth / 0.75) ** 2)
        return self.per_cell(1.1 * self.level) * np.exp(0.25 * fine + 0.2 * wide) * rim

    def nuclei(self, rng: Generator) -> np.ndarray:
        side, k = len(self.cell), len(self.seeds)
        dy, dx = self.inside
        turned = (dy + 1j * dx) * self.per_cell(np.exp(1j * rng.uniform(0, np.pi, k)))
        radius = np.hypot(*np.stack([turned.real, turned.imag]) / self.per_cell(self.axes))
        # Chromatin is a fine network, denser at the envelope, with up to three dark nucleoli.
        chromatin = np.exp(0.38 * smooth(rng, side, 1.3) + 0.27 * smooth(rng, side, 3))
        chromatin *= 0.75 + 0.45 * np.exp(-0.5 * ((radius - 0.9) / 0.1) ** 2)
        for _ in range(3):
            apart = np.hypot(*(self.inside - self.per_cell(rng.normal(0, 4, (2, k)))))
            size = self.per_cell(rng.choice([0.1, 2.2, 3.4], k) * rng.uniform(0.8, 1.2, k))
            chromatin *= 1 - 0.75 * sigmoid((size - apart) * 2)
        level = rng.uniform(0.5, 0.95, k) * (rng.random(k) > 0.08)  # the focal plane misses a few nuclei
        return self.per_cell(level) * sigmoid((1 - radius) * 18) * sigmoid(self.depth - 2) * chromatin

    def filaments(self, rng: Generator, cytoplasm: np.ndarray) -> np.ndarray:
        """Persistent random walks of half-pixel steps from the nucleus towards the membrane."""
        m, steps = 18 * len(self.seeds), 130
        owner = np.arange(m) // 18
        angle = rng.uniform(0, 2 * np.pi, m)
        rim = self.axes[:, owner].mean(axis=0) * rng.uniform(0.9, 1.5, m)
        bend = blur(rng.normal(0, 0.11, (steps, m)), 6)
        heading = angle + rng.normal(0, 0.6, m) + np.cumsum(bend, axis=0)  # (steps, m)
        path = 0.5 * np.cumsum(unit(heading), axis=1)  # (2, steps, m)
        path += self._around(owner, rim, angle)[:, None]
        stays = (nearest_value(self.cell, path) == owner) & (nearest_value(self.depth, path) > 0.5)
        weight = 0.5 * self.level[owner] * rng.uniform(0.4, 1.4, m) * nearest_value(cytoplasm, path)
        return splat(path, weight * np.logical_and.accumulate(stays, axis=0), len(self.cell))

    def vesicles(self, rng: Generator, cytoplasm: np.ndarray) -> np.ndarray:
        """Points smaller than the PSF, half of which crowd on one side of the nucleus."""
        owner = np.arange(24 * len(self.seeds)) // 24
        crowded = rng.random(len(owner)) < 0.5
        side_of = rng.uniform(0, 2 * np.pi, len(self.seeds))[owner]
        angle = side_of + rng.normal(0, np.where(crowded, 0.35, 10))  # 10 rad means anywhere
        distance = rng.normal(np.where(crowded, 17, 22), np.where(crowded, 3, 6))  # px
        at = self._around(owner, distance, angle)
        weight = 4 * rng.lognormal(0, 0.45, len(owner)) * nearest_value(cytoplasm, at)
        return splat(at, weight, len(self.cell))

    def _around(self, owner: np.ndarray, distance: np.ndarray, angle: np.ndarray) -> np.ndarray:
        """Canvas positions (2, m) around nuclei, with the bending of space reversed to first order."""
        bent = self.centre[owner].T + distance * unit(angle)
        return bent - nearest_value(self.warp, bent)
