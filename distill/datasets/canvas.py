"""Tools that draw the specimen on a square canvas: random fields, lattices, blur, and points."""

import numpy as np
from numpy.random import Generator


def jittered_lattice(rng: Generator, side: int, spacing: float) -> np.ndarray:
    """Cell centres (K, 2) on a rotated hexagonal lattice that extends beyond the canvas by one cell."""
    steps = int(side / spacing) + 4
    i, j = np.mgrid[-steps : steps + 1, -steps : steps + 1].reshape(2, -1)
    lattice = i * np.sqrt(0.75) + 1j * (j + i % 2 / 2)  # complex numbers, so that a rotation is a product
    lattice = lattice + rng.normal(0, 0.16, (len(i), 2)) @ [1, 1j]
    lattice = spacing * lattice * np.exp(1j * rng.uniform(0, np.pi))
    seeds = np.stack([lattice.real, lattice.imag], axis=1) + side / 2
    return seeds[(np.abs(seeds - side / 2) < side / 2 + 1.2 * spacing).all(axis=1)]


def smooth(rng: Generator, side: int, scale: float) -> np.ndarray:
    """A Gaussian random field (side, side) of mean 0 and variance 1, correlated over `scale` pixels."""
    white = np.fft.rfft2(rng.standard_normal((side, side), np.float32))
    y, x = np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)
    field = np.fft.irfft2(white * np.exp(-2 * (np.pi * scale) ** 2 * (y**2 + x**2)), s=(side, side))
    return (field - field.mean()) / field.std()


def blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Blurs along the first axis by a Gaussian that is cut at 4 sigma, with reflection at both ends."""
    radius = int(4 * sigma + 0.5)
    window = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    padded = np.pad(image, ((radius, radius), (0, 0)), mode="symmetric")
    return np.lib.stride_tricks.sliding_window_view(padded, len(window), axis=0) @ (window / window.sum())


def five_nearest(position: np.ndarray, seeds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The five nearest seeds of each pixel: squared distances and indices, each (5, side, side), sorted.

    Positions are (2, side, side), seeds (K, 2). The search is done in tiles: the distance of a pixel's fifth
    seed from the centre of the tile is at most that of the centre's fifth seed plus twice the tile's radius.
    """
    squared, near = np.empty((5, *position.shape[1:])), np.empty((5, *position.shape[1:]), int)
    for tile in np.ndindex(*(-(-n // 64) for n in position.shape[1:])):
        here = (slice(None), *(slice(64 * i, 64 * (i + 1)) for i in tile))
        centre = position[here].mean((1, 2))
        radius = np.hypot(*(position[here] - centre[:, None, None])).max()
        from_centre = np.hypot(*(seeds - centre).T)
        close = np.flatnonzero(from_centre <= np.sort(from_centre)[4] + 2 * radius)
        squares = ((position[here][:, None] - seeds[close].T[..., None, None]) ** 2).sum(0)
        order = np.argsort(squares, axis=0)[:5]
        squared[here], near[here] = np.take_along_axis(squares, order, 0), close[order]
    return squared, near


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 + 0.5 * np.tanh(x / 2)  # without overflow for large numbers


def unit(angle: np.ndarray) -> np.ndarray:
    return np.stack([np.cos(angle), np.sin(angle)])


def nearest_value(image: np.ndarray, position: np.ndarray) -> np.ndarray:
    """Values of an image (..., side, side) at the pixels nearest to positions (2, ...), within the canvas."""
    y, x = np.clip(np.rint(position), 0, image.shape[-1] - 1).astype(int)
    return image[..., y, x]


def splat(position: np.ndarray, weight: np.ndarray, side: int) -> np.ndarray:
    """Adds weights at sub-pixel positions, distributed bilinearly so that lines have no staircase."""
    position, weight = position.reshape(2, -1), weight.ravel()
    keep = (weight > 0) & (position >= 0).all(axis=0) & (position < side - 1).all(axis=0)
    fraction, low = np.modf(position[:, keep])
    image = np.zeros(side * side)
    for corner in np.ndindex(2, 2):
        step = np.array(corner)[:, None]
        share = np.where(step, fraction, 1 - fraction).prod(axis=0)
        y, x = low.astype(int) + step
        image += np.bincount(y * side + x, weight[keep] * share, side * side)
    return image.reshape(side, side)
