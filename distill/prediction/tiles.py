"""Images that are too large to go through a network at once."""

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
LARGE, SIDE = 2048**2, 1024  # pixels of a frame beyond which it is computed in tiles, and their side
HALO = 64  # of networks whose receptive field no halo covers


class Tile(NamedTuple):
    """Rows and columns: of the image that the network sees; of its answer to the whole image, where the tile
    is written; and of its answer to what it sees, where that comes from."""

    seen: tuple[slice, slice]
    kept: tuple[slice, slice]
    inside: tuple[slice, slice]

    def enlarged(self, scale: Sequence[int]) -> "Tile":
        """The same for an answer that is so many times larger, along Y and X."""
        return Tile(self.seen, _times(self.kept, scale), _times(self.inside, scale))


def _times(spans: tuple[slice, slice], scale: Sequence[int]) -> tuple[slice, slice]:
    y, x = (slice(s.start * by, s.stop * by) for s, by in zip(spans, scale, strict=True))
    return y, x


def tiles(size: Sequence[int], tile: int | None, halo: int) -> Iterator[Tile]:
    """All of an image (H, W), of `tile` pixels with `halo` more on every side; None is the whole image."""
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
    """Side of the tiles for images (H, W) or volumes (Z, H, W), None for the whole: alike on every machine
    and however much memory is free, so that what a stop interrupted resumes with the same tiles."""
    side = int(SIDE / math.sqrt(math.prod(size[:-2])))  # as many pixels, in all planes
    return max(2 * ALIGNMENT, side // ALIGNMENT * ALIGNMENT) if math.prod(size) > LARGE else None


def in_tiles(
    answer: Callable[[Tensor], Tensor], noisy: Tensor, tile: int | None = None, halo: int = HALO
) -> Tensor:
    """(B, C, *S) -> (B, K, *S'): `answer` on tiles of `tile` pixels, with `halo` more on every side.

    A halo of the network's receptive field makes tiles exactly the whole image: 160 px for the
    paper's U-Net. HDN's exceeds any halo. Where a tile meets the image's border there is none. Tiles of
    volumes have all their planes.
    """
    size = noisy.shape[-2:]
    if tile is None or tile >= max(size):
        return answer(noisy)
    whole = noisy.new_empty(0)
    for place in tiles(size, tile, halo):
        seen = noisy[(..., *place.seen)]
        part = answer(seen)
        scale = [n // m for n, m in zip(part.shape[-2:], seen.shape[-2:], strict=True)]
        if not whole.numel():
            whole = part.new_empty(*part.shape[:-2], *(n * by for n, by in zip(size, scale, strict=True)))
        larger = place.enlarged(scale)
        whole[(..., *larger.kept)] = part[(..., *larger.inside)]
    return whole


class FittingTiles:
    """`in_tiles`, and with tiles of half the side, as often as the memory is not enough."""

    def __init__(self, answer: Callable[[Tensor], Tensor], tile: int | None, halo_of: Callable[[], int]):
        self.answer, self.tile, self._halo_of = answer, tile, halo_of

    @cached_property
    def halo(self) -> int:
        """Asked for where there are tiles: to find it takes time."""
        return self._halo_of()

    def __call__(self, noisy: Tensor) -> Tensor:
        """(B, C, *S) -> (B, K, *S'). Errors: not even tiles of ALIGNMENT pixels fit."""
        while (answer := self._try(noisy)) is None:
            side = min(self.tile or max(noisy.shape[-2:]), max(noisy.shape[-2:]))
            if side <= ALIGNMENT:
                raise UserError(
                    f"out of memory with tiles of {side} pixels and a halo of {self.halo}; pass a smaller "
                    "halo, or --device cpu"
                )
            self.tile = max(ALIGNMENT, side // 2 // ALIGNMENT * ALIGNMENT)
            log.warning("out of memory; from here on in tiles of %d pixels (--tile)", self.tile)
            if noisy.is_cuda:
                torch.cuda.empty_cache()
        return answer

    def _try(self, noisy: Tensor) -> Tensor | None:
        """None where memory ran out; a function of its own, so that what it held is free before the next."""
        try:
            return in_tiles(self.answer, noisy, self.tile, self.halo if self.tile else 0)
        except Exception as error:
            if not out_of_memory(error):
                raise
            return None


def check_tile(tile: int | None) -> None:
    if tile is not None and tile < ALIGNMENT:
        raise UserError(f"tile: got {tile}, must be at least {ALIGNMENT}")
