"""Pictures for judging a denoiser, with a common intensity scale and without resampling."""

from pathlib import Path

import numpy as np
from torch import Tensor

from distill.files import whole_file


def mosaic(path: Path, columns: list[Tensor], rows: int = 4) -> None:
    """Writes a PNG whose columns show different versions of the same `rows` patches (B, C, *S).

    Of volumes the middle planes are shown. All have the grey scale of the last column's percentiles. Pixels
    are doubled, and repeated further if a version is smaller than the last.
    """
    from matplotlib.image import imsave

    versions = [middle_plane(column[:rows, 0]).float().cpu().numpy() for column in columns]
    versions = [enlarged(column, versions[-1].shape) for column in versions]
    low, high = np.percentile(versions[-1], (0.5, 99.8))
    framed = [np.pad(patches, ((0, 0), (1, 1), (1, 1)), constant_values=high) for patches in versions]
    picture = np.concatenate([np.concatenate(list(patches)) for patches in framed], axis=1)
    with whole_file(path) as part:
        imsave(part, picture.repeat(2, 0).repeat(2, 1), cmap="gray", vmin=low, vmax=high, format="png")


def comparison(path: Path, images: dict[str, np.ndarray], zoom: int = 96) -> None:
    """Draws whole images (H, W) with their titles in a row, and the same region of each, enlarged, below.

    All have the grey scale of the last image's percentiles; the region shows the typical texture of it.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    reference = list(images.values())[-1]
    low, high = np.percentile(reference, (0.5, 99.8))
    zoom = min(zoom, *reference.shape)
    y, x = typical(reference, zoom)
    figure = Figure(figsize=(3 * len(images), 6.4))
    axes = figure.subplots(2, len(images), squeeze=False)
    for (title, image), (whole, detail) in zip(images.items(), axes.T, strict=True):
        for axis, part in ((whole, image), (detail, image[y : y + zoom, x : x + zoom])):
            axis.imshow(part, cmap="gray", vmin=low, vmax=high, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
        whole.set_title(title, fontsize=10)
        whole.add_patch(Rectangle((x, y), zoom, zoom, fill=False, color="orange"))
    figure.tight_layout()
    with whole_file(path) as part:
        figure.savefig(part, format="png", dpi=110)


def middle_plane(images: Tensor) -> Tensor:
    """(B, Z, H, W) -> (B, H, W), the plane in the middle of each volume; images as they are."""
    return images[:, images.shape[1] // 2] if images.ndim == 4 else images


def enlarged(images: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Repeats pixels of images (..., H, W) to the H and W of `shape`, which are multiples of their own."""
    down, right = (n // own for n, own in zip(shape[-2:], images.shape[-2:], strict=True))
    return images.repeat(down, -2).repeat(right, -1) if down * right > 1 else images


def typical(image: np.ndarray, size: int) -> tuple[int, int]:
    """Corner (y, x) of a size x size block with the typical texture of the image's structure.

    It is the block below which, ordered by variation, three quarters of all variation lie. So it is neither
    background, however large, nor the brightest spot.
    """
    corners = [
        (y, x)
        for y in range(0, image.shape[0] - size + 1, max(1, size // 2))
        for x in range(0, image.shape[1] - size + 1, max(1, size // 2))
    ]
    spread = np.array([image[y : y + size, x : x + size].std() for y, x in corners], np.float64)
    order = np.argsort(spread, kind="stable")
    below = np.cumsum(spread[order])
    return corners[order[np.searchsorted(below, 0.75 * below[-1])]]
