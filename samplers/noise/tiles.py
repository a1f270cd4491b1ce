"""Tiles of noisy images to estimate noise from, with the brightness and smoothness around each pixel."""

import math
from functools import reduce

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

TILE, MAX_PIXELS = 256, 2**21
RING = 7  # side in px of the neighbourhood whose brightness and smoothness are measured


def read_tiles(frames: Tensor | np.ndarray, caller: str) -> Tensor:
    """Reads evenly spread tiles (T, 1, h, w) in float32, without hot pixels.

    Together they cover all frames, or as many as MAX_PIXELS allows. Tiles are read one by one. Raises a
    ValueError that begins with `caller` if the frames are too small, constant or not finite.

    Args:
        frames: images (N, C, H, W), (N, H, W) or (H, W); may be memory-mapped.
        caller: name of the calling function, for the error.
    """
    frames = frames.detach().cpu().numpy() if torch.is_tensor(frames) else frames
    shape = tuple(frames.shape)
    if not 2 <= len(shape) <= 4 or min(shape[-2:]) < 2 * RING or 0 in shape:
        raise ValueError(
            f"{caller}: got frames of shape {shape}, but noise is estimated from (N, C, H, W), (N, H, W) or "
            f"(H, W) with H and W at least {2 * RING}; pass larger images, or a run of larger ones"
        )
    h, w = (size // math.ceil(size / TILE) for size in shape[-2:])
    grid = (*shape[:-2], shape[-2] // h, shape[-1] // w)
    total = math.prod(grid)
    picks = np.unique(np.linspace(0, total - 1, min(total, MAX_PIXELS // (h * w))).round().astype(int))

    tiles = []
    for *lead, row, column in zip(*np.unravel_index(picks, grid), strict=True):
        where = (*lead, slice(row * h, row * h + h), slice(column * w, column * w + w))
        tiles.append(torch.from_numpy(np.array(frames[where], "f4")))
    tiles = torch.stack(tiles)[:, None]
    if not tiles.isfinite().all() or tiles.min() == tiles.max():
        raise ValueError(
            f"{caller}: frames are constant or hold NaN or infinity; "
            "pass raw camera counts, or give std or gain and offset yourself"
        )
    return without_hot_pixels(tiles)


def without_hot_pixels(tiles: Tensor) -> Tensor:
    """Replaces hot pixels of tiles (T, 1, h, w) by the brightest of their neighbours.

    A single pixel stuck at 65535 would decide the range of brightness and the noise in it. A pixel is hot if
    it is 6 times as bright as each of its neighbours and 20 times as bright as 99.5 % of the pixels, measured
    from the level of the darkest 0.5 %.
    """
    padded, (height, width) = F.pad(tiles, (1, 1, 1, 1), "reflect"), tiles.shape[-2:]
    places = [(y, x) for y in range(3) for x in range(3) if (y, x) != (1, 1)]
    neighbours = reduce(torch.maximum, (padded[..., y : y + height, x : x + width] for y, x in places))
    pixels = tiles.flatten()
    dark, bright = (float(pixels.kthvalue(1 + round(q * (len(pixels) - 1))).values) for q in (0.005, 0.995))
    hot = (tiles - dark > 6 * (neighbours - dark)) & (tiles - dark > 20 * (bright - dark))
    return torch.where(hot, neighbours, tiles) if bright > dark else tiles  # else perhaps a single photon


def ring_statistics(tiles: Tensor) -> tuple[Tensor, Tensor]:
    """Level and structure of the ring around each block of 3x3 pixels, each (T, 1, h - 6, w - 6).

    They are independent of the noise in the block, so selecting pixels by them does not bias its statistics.
    """
    coords = torch.arange(RING) - RING // 2
    y, x = torch.meshgrid(coords, coords, indexing="ij")
    ring = torch.maximum(y.abs(), x.abs()) > 1
    shapes = torch.stack([ring, ring * y, ring * x, ring * x * y, ring * (x * x - y * y)]).float()
    shapes = shapes / shapes.norm(dim=(1, 2), keepdim=True)
    moments = F.conv2d(tiles, shapes[:, None])
    return moments[:, :1] / ring.sum().sqrt(), (moments[:, 1:] ** 2).sum(1, keepdim=True)


def argsort(values: Tensor) -> Tensor:
    """Of flat values on the CPU, by NumPy, which is several times as fast as torch."""
    return torch.from_numpy(np.argsort(values.numpy()))


def smoothest(pixels: Tensor, structure: Tensor, n: int) -> Tensor:
    """Of indices of pixels, the n where there is least structure, in any order."""
    return pixels[structure[pixels].topk(n, largest=False, sorted=False).indices]
