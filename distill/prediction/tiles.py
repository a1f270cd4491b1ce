"""Images that are too large to go through a network at once."""

import logging
from collections.abc import Callable, Iterator
from functools import cached_property
from itertools import product

import torch
from torch import Tensor

from distill.errors import UserError, out_of_memory
from distill.prediction.plan import ALIGNMENT, spans

log = logging.getLogger(__name__)


def in_tiles(
    answer: Callable[[Tensor], Tensor], noisy: Tensor, tile: int | None = None, halo: int = 64
) -> Tensor:
    """(B, C, H, W) -> (B, K, H', W'): `answer` on tiles of `tile` pixels, with `halo` more on every side.

    A halo of the network's receptive field makes tiles exactly the whole image: 160 px for the
    paper's U-Net. HDN's exceeds any halo. Where a tile meets the image's border there is none.
    """
    if tile is None or tile >= max(noisy.shape[-2:]):
        return answer(noisy)
    whole = noisy.new_empty(0)
    height, width = noisy.shape[-2:]
    for (y0, y1, top, bottom), (x0, x1, left, right) in _tiles(height, width, tile, halo):
        seen = answer(noisy[..., top:bottom, left:right])
        down, across = (
            seen.shape[-2] // (bottom - top),
            seen.shape[-1] // (right - left),
        )  # how many times larger
        if not whole.numel():
            whole = seen.new_empty(*seen.shape[:2], height * down, width * across)
        kept = seen[..., (y0 - top) * down : (y1 - top) * down, (x0 - left) * across : (x1 - left) * across]
        whole[..., y0 * down : y1 * down, x0 * across : x1 * across] = kept
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
        """(B, C, H, W) -> (B, K, H', W'). Errors: not even tiles of ALIGNMENT pixels fit."""
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


def _tiles(height: int, width: int, tile: int, halo: int) -> Iterator[tuple[tuple[int, ...], ...]]:
    """For each tile and axis: start and end of what is kept, start and end of what is seen."""
    step = max(ALIGNMENT, tile // ALIGNMENT * ALIGNMENT)
    for (rows, seen_rows), (columns, seen_columns) in product(
        spans(height, step, halo), spans(width, step, halo)
    ):
        yield (*rows, *seen_rows), (*columns, *seen_columns)
