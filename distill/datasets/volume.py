"""The built-in volume: shells, blobs and filaments in three dimensions, with camera noise."""

import numpy as np
from numpy.random import Generator

from distill.datasets.synthetic import BLACK_LEVEL, GAIN, READ_NOISE, Specimen, camera
from distill.errors import UserError

MARGIN = 8  # px that are drawn and cropped on every side
PSF = (1.6, 1.1, 1.1)  # px, standard deviations along Z, Y, X: a microscope blurs more along Z


def specimen_volume(depth: int = 32, size: int = 128, *, seed: int = 0, photons: float = 15.0) -> Specimen:
    """Makes one synthetic volume with shot noise, read noise, a gain, a black level and rounding to uint16.

    Its noisy and clean pixels are (depth, size, size), with the axes Z, Y, X.

    Args:
        depth: number of planes, at least 8.
        size: side of a plane in pixels, at least 32.
        seed: seed of the structures and of the noise.
        photons: expected photons at the brightest pixel.
    """
    if depth < 8 or size < 32 or not 0 < photons <= 5000:
        raise UserError(
            f"specimen_volume: got {depth=}, {size=}, {photons=}; pass depth >= 8, size >= 32, "
            "0 < photons <= 5000"
        )
    rng = np.random.default_rng([seed, depth, size])
    shape = np.array([depth, size, size]) + 2 * MARGIN
    structures = _shells(rng, shape) + _lines(rng, shape) + _spots(rng, shape)
    inner = (slice(MARGIN, -MARGIN),) * 3
    noisy, clean = camera(rng, np.maximum(_blurred(structures), 0)[inner] + 0.02, photons)
    return Specimen(noisy, clean, GAIN, (GAIN * READ_NOISE) ** 2 + 1 / 12 - GAIN * BLACK_LEVEL)


def _shells(rng: Generator, shape: np.ndarray) -> np.ndarray:
    """Ellipsoids with a bright envelope and a dim, uneven inside."""
    position, image = np.indices(shape.tolist()), np.zeros(shape)
    texture = 1 + 0.6 * _unit_variance(_blurred(rng.standard_normal(shape)))
    for _ in range(max(3, int(shape.prod() / 25_000))):
        centre, radii = rng.uniform(0, shape), rng.uniform(7, 13, 3)
        distance = (position - centre.reshape(3, 1, 1, 1)) / radii.reshape(3, 1, 1, 1)
        radius = np.sqrt((distance**2).sum(0))
        shell = np.exp(-0.5 * ((radius - 1) / 0.09) ** 2)
        image = np.maximum(image, rng.uniform(0.5, 1) * (shell + 0.35 * texture * (radius < 0.9)))
    return 0.5 * image


def _lines(rng: Generator, shape: np.ndarray) -> np.ndarray:
    """Filaments: random walks of half-pixel steps that keep their direction for a while."""
    count, steps = max(8, int(shape.prod() / 8_000)), 200
    turns = np.cumsum(rng.normal(0, 0.12, (steps, 3, count)), axis=0)
    heading = rng.standard_normal((3, count)) * [[0.6], [1], [1]] + turns
    path = np.cumsum(0.5 * heading / np.linalg.norm(heading, axis=1, keepdims=True), axis=0)
    path = (path + rng.uniform(0, shape[:, None], (3, count))).transpose(1, 0, 2).reshape(3, -1)
    return _points(path, np.tile(rng.uniform(3, 8, count), steps), shape)


def _spots(rng: Generator, shape: np.ndarray) -> np.ndarray:
    """Vesicles: points smaller than the PSF."""
    count = int(shape.prod() / 1500)
    return _points(rng.uniform(0, shape[:, None], (3, count)), 18 * rng.lognormal(0, 0.5, count), shape)


def _points(position: np.ndarray, weight: np.ndarray, shape: np.ndarray) -> np.ndarray:
    """Weights at the pixels nearest to positions (3, n), of those within the volume."""
    nearest = np.rint(position).astype(int)
    inside = ((nearest >= 0) & (nearest < shape[:, None])).all(axis=0)
    index = np.ravel_multi_index(tuple(nearest[:, inside]), tuple(shape))
    return np.bincount(index, weight[inside], shape.prod()).reshape(shape) / 10


def _blurred(image: np.ndarray) -> np.ndarray:
    """Convolved with the PSF; the volume is periodic, which the margin hides."""
    squares = [(sigma * np.fft.fftfreq(n)) ** 2 for sigma, n in zip(PSF, image.shape, strict=True)]
    exponent = squares[0][:, None, None] + squares[1][:, None] + squares[2]
    return np.fft.ifftn(np.fft.fftn(image) * np.exp(-2 * np.pi**2 * exponent)).real


def _unit_variance(image: np.ndarray) -> np.ndarray:
    return (image - image.mean()) / image.std()
