"""Pixels to estimate noise from: tiles of noisy images, and how bright and smooth each pixel's ring is."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

TILE, MAX_TILES = 256, 32  # 2 million pixels at most
RING = 7  # side of the neighbourhood that tells a pixel's brightness and smoothness


def read_tiles(frames: Tensor | np.ndarray, caller: str) -> Tensor:
    """Evenly spread tiles (T, 1, h, w) in float32, read one by one: `frames` may be memory-mapped.

    frames: (N, C, H, W), (N, H, W) or (H, W). ValueError if they are too small, constant or not finite.
    """
    frames = frames.detach().cpu().numpy() if torch.is_tensor(frames) else frames
    shape = tuple(frames.shape)
    if not 2 <= len(shape) <= 4 or min(shape[-2:]) < 2 * RING or 0 in shape:
        raise ValueError(
            f"{caller}: got frames of shape {shape}; pass (N, C, H, W), (N, H, W) "
            f"or (H, W) with H and W at least {2 * RING}"
        )
    h, w = (min(size, TILE) for size in shape[-2:])
    grid = (*shape[:-2], shape[-2] // h, shape[-1] // w)
    total = math.prod(grid)
    picks = np.unique(np.linspace(0, total - 1, min(total, MAX_TILES)).round().astype(int))

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
    """Single pixels that no light makes become the brightest of their neighbours: one stuck at 65535 would
    decide what is bright and how noisy that is.

    Hot is what lies 6 times as high as each of its neighbours and 20 times as high as 99.5 % of the pixels,
    both above the darkest 0.5 %.
    """
    around = F.pad(tiles, (1, 1, 1, 1), "reflect").unfold(2, 3, 1).unfold(3, 3, 1).flatten(-2)
    neighbours = torch.cat([around[..., :4], around[..., 5:]], dim=-1).amax(-1)
    pixels = tiles.flatten().sort().values
    dark, bright = (float(pixels[round(q * (len(pixels) - 1))]) for q in (0.005, 0.995))
    hot = (tiles - dark > 6 * (neighbours - dark)) & (tiles - dark > 20 * (bright - dark))
    return torch.where(hot, neighbours, tiles) if bright > dark else tiles  # else it may be a lone photon


def ring_statistics(tiles: Tensor) -> tuple[Tensor, Tensor]:
    """Level and structure, each (T, 1, h - 6, w - 6), of the ring around each 3x3 pixels.

    They are independent of the noise inside: choosing pixels by them biases no statistic of it.
    """
    coords = torch.arange(RING) - RING // 2
    y, x = torch.meshgrid(coords, coords, indexing="ij")
    ring = torch.maximum(y.abs(), x.abs()) > 1
    shapes = torch.stack([ring, ring * y, ring * x, ring * x * y, ring * (x * x - y * y)]).float()
    shapes = shapes / shapes.norm(dim=(1, 2), keepdim=True)
    moments = F.conv2d(tiles, shapes[:, None])
    return moments[:, :1] / ring.sum().sqrt(), (moments[:, 1:] ** 2).sum(1, keepdim=True)
