"""Clean synthetic fields of many kinds, so that a denoiser does not overfit to one kind of image.

Each is a random mixture of layers, some of them masked by others, under a random point spread function,
haze and uneven illumination.
"""

from collections.abc import Callable

import numpy as np
from numpy.random import Generator
from scipy.fft import irfft2, rfft2
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.spatial import KDTree
from scipy.special import expit
from tqdm import tqdm

MARGIN = 16  # px, drawn beyond every side and cropped: structures run across the border


def bank(n: int, size: int = 256, seed: int = 0) -> np.ndarray:
    """(n, size, size) float16 in 0..1; field i depends on seed and i, not on n."""
    return np.stack([field(np.random.default_rng([seed, i]), size) for i in tqdm(range(n), "fields")])


def field(rng: Generator, size: int) -> np.ndarray:
    n = size + 2 * MARGIN
    image = np.zeros((n, n))
    for _ in range(rng.choice([1, 2, 3, 4], p=[0.35, 0.35, 0.2, 0.1])):
        layer = any_layer(rng, n)
        if rng.random() < 0.25:  # only inside another structure
            layer *= expit(rng.choice([-1, 1]) * 6 * (any_layer(rng, n) - 0.3))
        image += layer * loguniform(rng, 0.1, 1)
    if rng.random() < 0.7:  # else as sharp as the pixels allow, as in histology or electron microscopy
        image = gaussian_filter(image, rng.uniform(0.5, 1.6) if rng.random() < 0.7 else rng.uniform(1.6, 3))
    if rng.random() < 0.4:  # light from above and below the focal plane
        image += rng.uniform(0.05, 0.5) * gaussian_filter(image, rng.uniform(5, 15))
    if rng.random() < 0.3:  # uneven illumination
        image *= np.exp(0.4 * smooth(rng, n, n / 4))
    return scaled(image[MARGIN:-MARGIN, MARGIN:-MARGIN]).astype(np.float16)


def any_layer(rng: Generator, n: int) -> np.ndarray:
    """(n, n) in 0..1."""
    return scaled(LAYERS[rng.integers(len(LAYERS))](rng, n))


def scaled(image: np.ndarray) -> np.ndarray:
    """0..1, with the brightest 0.02 % of the pixels clipped."""
    low, high = np.quantile(image, [0.0, 0.9998])
    return np.clip((image - low) / max(high - low, 1e-9), 0, 1)


def loguniform(rng: Generator, low: float, high: float) -> float:
    return np.exp(rng.uniform(np.log(low), np.log(high)))


def spectrum(rng: Generator, n: int, slope: float, low: float = 0.0) -> np.ndarray:
    """Gaussian random field, amplitude 1 / f^slope (flat below `low`), mean 0, variance 1."""
    f = np.hypot(np.fft.fftfreq(n)[:, None], np.fft.rfftfreq(n))
    f = np.maximum(f, max(low, 1 / n))
    image = np.asarray(irfft2(np.asarray(rfft2(rng.normal(size=(n, n)))) / f**slope, (n, n)))
    return (image - image.mean()) / image.std()


def smooth(rng: Generator, n: int, scale: float) -> np.ndarray:
    """Gaussian random field, mean 0, variance 1, correlated over `scale` pixels."""
    image = gaussian_filter(rng.normal(size=(n, n)), scale, mode="wrap")
    return (image - image.mean()) / image.std()


def fur(rng: Generator, n: int) -> np.ndarray:
    """Gaussian random field of short strands along a slowly turning direction, mean 0, variance 1."""
    bend, width = rng.uniform(0, 12), loguniform(rng, 0.5, 2)
    length = width * loguniform(rng, 3, 15)
    strands = gaussian_filter(rng.normal(size=(n, n)), (width, length), mode="wrap")
    angle = rng.uniform(0, np.pi)
    y, x = np.mgrid[:n, :n] + bend * np.stack([smooth(rng, n, n / 8), smooth(rng, n, n / 8)])
    turned = [np.cos(angle) * y + np.sin(angle) * x, np.cos(angle) * x - np.sin(angle) * y]
    image = map_coordinates(strands, turned, order=1, mode="grid-wrap")
    return (image - image.mean()) / image.std()


def lattice(rng: Generator, n: int) -> np.ndarray:
    """One motif on a regular grid, such as bricks, weaves, meshes or crystals, mean 0, variance 1."""
    period, angle = loguniform(rng, 4, 40), rng.uniform(0, np.pi)
    y, x = np.mgrid[:n, :n] + rng.uniform(0, 0.15) * period * np.stack([smooth(rng, n, 20) for _ in "yx"])
    v = (np.cos(angle) * y + np.sin(angle) * x) / (period * loguniform(rng, 0.4, 1))
    u = (np.cos(angle) * x - np.sin(angle) * y) / period + rng.choice([0, 0.5]) * (np.floor(v) % 2)
    motif = smooth(rng, 32, rng.uniform(1, 6))
    if rng.random() < 0.5:
        motif = expit(loguniform(rng, 2, 20) * motif)
    image = map_coordinates(motif, [32 * (v % 1), 32 * (u % 1)], order=1, mode="grid-wrap")
    return (image - image.mean()) / max(image.std(), 1e-6)


def texture(rng: Generator, n: int) -> np.ndarray:
    """Positive, of mean about 1: fractal, a grating, grains, fur, a lattice, or none."""
    kind, strength = rng.integers(7), loguniform(rng, 0.05, 0.8)
    if kind == 0:
        return np.exp(strength * spectrum(rng, n, rng.uniform(0.6, 2)))
    if kind == 1:
        y, x = np.mgrid[:n, :n] + 3 * np.stack([smooth(rng, n, 20), smooth(rng, n, 20)])
        angle, period = rng.uniform(0, np.pi), loguniform(rng, 3, 25)
        return 1 + strength * np.sin(2 * np.pi * (np.cos(angle) * x + np.sin(angle) * y) / period)
    if kind == 2:
        return np.exp(strength * smooth(rng, n, loguniform(rng, 0.8, 5)))
    if kind == 3:
        return np.exp(strength * fur(rng, n))
    if kind == 4:
        return np.exp(strength * lattice(rng, n))
    return np.ones((n, n))


def splat(position: np.ndarray, weight: np.ndarray | float, n: int) -> np.ndarray:
    """Adds weights at sub-pixel positions (2, ...), shared bilinearly among four pixels; wraps."""
    position, weight = position.reshape(2, -1), np.broadcast_to(weight, position.shape[1:]).ravel()
    fraction, whole = np.modf(position % n)
    image = np.zeros(n * n)
    for corner in np.ndindex(2, 2):
        share = np.abs(1 - np.array(corner)[:, None] - fraction).prod(0)
        y, x = (whole.astype(int) + np.array(corner)[:, None]) % n
        image += np.bincount(y * n + x, weight * share, n * n)
    return image.reshape(n, n)


def centres(rng: Generator, n: int, count: int) -> np.ndarray:
    """(2, count) positions, half of the time clustered."""
    if rng.random() < 0.5:
        return rng.uniform(0, n, (2, count))
    hubs = rng.uniform(0, n, (2, rng.integers(2, 12)))
    return hubs[:, rng.integers(hubs.shape[1], size=count)] + rng.normal(0, rng.uniform(8, 50), (2, count))


def puncta(rng: Generator, n: int) -> np.ndarray:
    """Points about as large as the point spread function, of very different brightness."""
    count = int(loguniform(rng, 10, 2500))
    image = splat(centres(rng, n, count), rng.lognormal(0, rng.uniform(0, 1.2), count), n)
    return gaussian_filter(image, rng.uniform(0.7, 2.5), mode="wrap")


def blobs(rng: Generator, n: int) -> np.ndarray:
    """Soft spots of one to three sizes."""
    image = np.zeros((n, n))
    for _ in range(rng.integers(1, 4)):
        sigma, count = loguniform(rng, 2, 25), int(loguniform(rng, 4, 60))
        image += sigma**2 * gaussian_filter(splat(centres(rng, n, count), 1.0, n), sigma, mode="wrap")
    return image


def filaments(rng: Generator, n: int) -> np.ndarray:
    """Persistent random walks, of one width and stiffness or two."""
    image = np.zeros((n, n))
    for _ in range(rng.integers(1, 3)):
        count, steps = int(loguniform(rng, 3, 120)), int(loguniform(rng, 60, 1200))
        angle = rng.uniform(0, 2 * np.pi) + rng.uniform(0, np.pi) * rng.normal(size=(count, 1))
        angle = angle + np.cumsum(rng.normal(0, loguniform(rng, 0.004, 0.12), (count, steps)), 1)
        path = centres(rng, n, count)[..., None] + 0.5 * np.cumsum([np.sin(angle), np.cos(angle)], -1)
        weight = rng.lognormal(0, 0.5, (count, 1)) * np.ones(steps)
        image += scaled(gaussian_filter(splat(path, weight, n), loguniform(rng, 0.6, 4), mode="wrap"))
    return image


def bodies(rng: Generator, n: int) -> np.ndarray:
    """Nuclei, discs, rings and cell outlines: warped ellipses, filled or hollow, textured."""
    image, size = np.zeros((n, n)), loguniform(rng, 3, 60)
    grid = np.mgrid[:n, :n] + size * rng.uniform(0, 0.25) * np.stack([smooth(rng, n, size / 2) for _ in "yx"])
    pattern, soft, overlap = texture(rng, n), loguniform(rng, 0.3, 3), rng.random() < 0.5
    hollow, wall = rng.random() < 0.3, loguniform(rng, 0.6, 3)
    for centre in centres(rng, n, int(np.clip(loguniform(rng, 0.05, 0.8) * n * n / size**2 / 3, 1, 150))).T:
        radius, angle = size * rng.uniform(0.6, 1.2), rng.uniform(0, np.pi)
        y, x = (grid - centre[:, None, None] + n / 2) % n - n / 2
        u, v = np.cos(angle) * y + np.sin(angle) * x, np.cos(angle) * x - np.sin(angle) * y
        depth = radius * (1 - np.hypot(u / rng.uniform(0.6, 1), v) / radius)  # px inside the edge
        one = np.exp(-((depth / wall) ** 2)) if hollow else expit(2 * depth / soft)
        one = one * rng.lognormal(0, 0.4)
        image = image + one if overlap else np.maximum(image, one)
    return image * pattern


def tissue(rng: Generator, n: int) -> np.ndarray:
    """Cells that fill the plane: each with its level, and membranes between them."""
    spacing = loguniform(rng, 8, 70)
    seeds = rng.uniform(-20, n + 20, (max(int((n / spacing) ** 2), 6), 2))
    warp = spacing * rng.uniform(0, 0.2) * np.stack([smooth(rng, n, spacing / 3) for _ in "yx"])
    found = KDTree(seeds).query((np.mgrid[:n, :n] + warp).reshape(2, -1).T, k=2)
    distance, near = map(np.asarray, found)  # (n^2, 2), nearest first
    gap = (distance[:, 1] - distance[:, 0]).reshape(n, n)
    level = rng.lognormal(0, rng.uniform(0, 0.6), len(seeds))[near[:, 0]].reshape(n, n)
    membrane = np.exp(-((gap / loguniform(rng, 1, 4)) ** 2))
    return rng.choice([0, 1]) * level * texture(rng, n) * (1 - membrane) + rng.uniform(0.2, 2) * membrane


def leaves(rng: Generator, n: int) -> np.ndarray:
    """Dead leaves: ellipses and rectangles of all sizes that hide each other, each textured."""
    image, (y, x) = np.ones((n, n)), np.mgrid[:n, :n]
    patterns = [texture(rng, n) for _ in range(4)]
    smallest = loguniform(rng, 2, 8)
    for _ in range(int(loguniform(rng, 15, 400))):
        cy, cx, angle = *rng.uniform(0, n, 2), rng.uniform(0, np.pi)
        u = np.cos(angle) * (y - cy) + np.sin(angle) * (x - cx)
        v = np.cos(angle) * (x - cx) - np.sin(angle) * (y - cy)
        radius, aspect = loguniform(rng, smallest, n / 3), loguniform(rng, 0.3, 1)
        if rng.random() < 0.5:
            inside = u**2 + (v / aspect) ** 2 < radius**2
        else:
            inside = np.maximum(abs(u), abs(v) / aspect) < radius
        image[inside] = rng.uniform(0.02, 1) * patterns[rng.integers(4)][inside]
    return image


def fractal(rng: Generator, n: int) -> np.ndarray:
    """Clouds without a scale of their own."""
    image = spectrum(rng, n, rng.uniform(0.8, 2.2), low=loguniform(rng, 0.004, 0.1))
    return np.exp(rng.uniform(0.2, 1.2) * image)


def labyrinth(rng: Generator, n: int) -> np.ndarray:
    """Islands or stripes of one width: a band of frequencies, cut softly at a level."""
    scale = loguniform(rng, 1.5, 25)
    image = smooth(rng, n, scale)
    if rng.random() < 0.5:
        image = image - gaussian_filter(image, scale * 1.5, mode="wrap")
    image = image / image.std() - rng.uniform(-1, 1.5)
    return expit(loguniform(rng, 1, 20) * image) * texture(rng, n)


def surface(rng: Generator, n: int) -> np.ndarray:
    """One texture that fills the field, of a contrast that varies slowly, on uneven ground."""
    kind = rng.integers(3)
    image = [fur, lattice][kind](rng, n) if kind < 2 else spectrum(rng, n, rng.uniform(0.4, 1.5))
    contrast = loguniform(rng, 0.05, 0.5) * np.exp(0.5 * smooth(rng, n, n / 8))
    ground = rng.uniform(0, 0.5) * smooth(rng, n, loguniform(rng, 8, n / 4))
    return np.exp(contrast * image.clip(-2.5, 2.5) + ground)


LAYERS: list[Callable[[Generator, int], np.ndarray]] = [  # listed twice or thrice: as often drawn
    puncta, blobs, filaments, filaments, bodies, bodies, bodies, tissue, leaves, leaves, leaves, fractal,
    labyrinth, surface, surface,
]  # fmt: skip
