"""Computes a network on images in tiles, if they are too large to be computed at once."""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from distill.errors import UserError, out_of_memory
from distill.prediction.plan import ALIGNMENT, spans

log = logging.getLogger(__name__)
LARGE = 2048**2  # pixels; larger frames are computed in tiles
SIDE = 1024  # px; side of these tiles
HALO = 64  # px; halo for networks with an unlimited receptive field


class Tile(NamedTuple):
    """Rows and columns of a tile.

    seen: pixels of the image that the network sees. kept: pixels of the result for the whole image that the
    tile provides. inside: the same pixels in the result for `seen`.
    """

    seen: tuple[slice, slice]
    kept: tuple[slice, slice]
    inside: tuple[slice, slice]

    def enlarged(self, scale: Sequence[int]) -> "Tile":
        """The same for a result that is larger by factors along Y and X."""
        return Tile(self.seen, _times(self.kept, scale), _times(self.inside, scale))


def _times(spans: tuple[slice, slice], scale: Sequence[int]) -> tuple[slice, slice]:
    y, x = (slice(s.start * by, s.stop * by) for s, by in zip(spans, scale, strict=True))
    return y, x


def tiles(size: Sequence[int], tile: int | None, halo: int) -> Iterator[Tile]:
    """The tiles of an image (H, W). tile: side in pixels, or None for a single tile. halo: in pixels."""
    if tile is None or tile >= max(size):
        step, halo = max(size), 0
    else:
        step = max(ALIGNMENT, tile // ALIGNMENT * ALIGNMENT)
    for axes in product(*(spans(length, step, halo) for length in size)):
        y, x = (
            (slice(*seen), slice(*kept), slice(kept[0] - seen[0], kept[1] - seen[0])) for kept, seen in axes
        )
        yield Tile(*zip(y, x, strict=True))


def fixed_tile(size: Sequence[int]) -> int | None:
    """Side in pixels of the tiles for images (H, W) or volumes (Z, H, W), or None for no tiles.

    It does not depend on the machine or its free memory, so that an interrupted command resumes with the same
    tiles.
    """
    side = int(SIDE / math.sqrt(math.prod(size[:-2])))  # as many pixels in all planes
    return max(2 * ALIGNMENT, side // ALIGNMENT * ALIGNMENT) if math.prod(size) > LARGE else None


def in_tiles(
    answer: Callable[[Tensor], Tensor], noisy: Tensor, tile: int | None = None, halo: int = HALO
) -> Tensor:
    """Computes `answer` in tiles: noisy (B, C, *S) -> (B, K, *S'). Tiles of volumes have all planes.

    With a halo of the network's receptive field, such as 160 px for the U-Net of the paper, the result is
    exactly that of the whole image. The receptive field of HDN is larger than any halo. Beyond the
    border of the image there is no halo.

    Args:
        answer: network, as a function of images.
        noisy: images.
        tile: side of the tiles in pixels. Default: no tiles.
        halo: width in pixels of the surroundings of each tile that the network sees.
    """
    size = noisy.shape[-2:]
    if tile is None or tile >= max(size):
        return answer(noisy)
    whole = noisy.new_empty(0)
    for place in tiles(size, tile, halo):
        pixels = noisy[(..., *place.seen)]
        part = answer(pixels)
        scale = [n // m for n, m in zip(part.shape[-2:], pixels.shape[-2:], strict=True)]
        if not whole.numel():
            whole = part.new_empty(*part.shape[:-2], *(n * by for n, by in zip(size, scale, strict=True)))
        larger = place.enlarged(scale)
        whole[(..., *larger.kept)] = part[(..., *larger.inside)]
    return whole


class FittingTiles:
    """`in_tiles`, which halves the side of the tiles as long as the memory is not enough."""

    def __init__(self, answer: Callable[[Tensor], Tensor], tile: int | None, halo_of: Callable[[], int]):
        self.answer, self.tile, self._halo_of = answer, tile, halo_of

    @cached_property
    def halo(self) -> int:
        """The halo in pixels, computed only if there are tiles, because that takes time."""
        return self._halo_of()

    def __call__(self, noisy: Tensor) -> Tensor:
        """Noisy (B, C, *S) -> (B, K, *S'). UserError if not even tiles of ALIGNMENT pixels fit."""
        while (answer := self._try(noisy)) is None:
            side = min(self.tile or max(noisy.shape[-2:]), max(noisy.shape[-2:]))
            if side <= ALIGNMENT:
                raise UserError(
                    f"out of memory with tiles of {side} pixels and a halo of {self.halo}; pass a smaller "
                    "halo, or --device cpu"
                )
            self.tile = max(ALIGNMENT, side // 2 // ALIGNMENT * ALIGNMENT)
            log.warning("out of memory; continues in tiles of %d pixels (--tile)", self.tile)
            if noisy.is_cuda:
                torch.cuda.empty_cache()
        return answer

    def _try(self, noisy: Tensor) -> Tensor | None:
        """The result; None if memory ran out. As a separate function it frees its memory before a retry."""
        try:
            return in_tiles(self.answer, noisy, self.tile, self.halo if self.tile else 0)
        except Exception as error:
            if not out_of_memory(error):
                raise
            return None


def check_tile(tile: int | None) -> None:
    if tile is not None and tile < ALIGNMENT:
        raise UserError(f"tile: got {tile}, must be at least {ALIGNMENT}")
