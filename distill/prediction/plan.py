"""Which blocks of an image are read, computed and written at once, so that all fits a ceiling of memory."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from distill.errors import UserError

ALIGNMENT = 64  # what is seen starts at multiples of this, so that every tile is downsampled on one grid
CACHED = 2.0**26  # bytes of decoded chunks that are kept, for the tiles that share them
FIXED = 48e6 + CACHED  # that threads, libraries and their caches take, whatever the tiles
SHARE = 0.5  # of the ceiling, for what is planned: freed memory lies in pieces (see `keep_freed_memory`)
MOST_FRAMES = 64  # in a batch


@dataclass(frozen=True)
class Block:
    """Frames from `first` on; rows and columns of them: those that are written, and those that are seen."""

    first: int
    count: int
    rows: tuple[int, int]
    columns: tuple[int, int]
    seen_rows: tuple[int, int]
    seen_columns: tuple[int, int]

    @property
    def pixels(self) -> int:
        return self.count * (self.rows[1] - self.rows[0]) * (self.columns[1] - self.columns[0])


@dataclass(frozen=True)
class Plan:
    """height, width: of tiles. frames: in a block. batch: of those that are computed at once."""

    height: int
    width: int
    frames: int
    batch: int
    halo: int | None = None  # None where whole frames fit, and nobody asked for one

    def blocks(self, shape: tuple[int, ...], length: int) -> list[Block]:
        """Of frames of shape (N, C, *S), of volumes with all planes. No block's frames go beyond a multiple
        of `length`, the number of those that follow each other on one axis."""
        starts = [
            (first + start, min(self.frames, length - start))
            for first in range(0, shape[0], length)
            for start in range(0, length, self.frames)
        ]
        rows = list(spans(shape[-2], self.height, self.halo or 0))
        columns = list(spans(shape[-1], self.width, self.halo or 0))
        return [
            Block(*frames, kept_y, kept_x, seen_y, seen_x)
            for frames, (kept_y, seen_y), (kept_x, seen_x) in product(starts, rows, columns)
        ]


def spans(length: int, step: int, halo: int) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Along one axis: start and end of what is kept, start and end of what is seen."""
    for start in range(0, length, step):
        stop = min(start + step, length)
        top = max(0, start - halo) // ALIGNMENT * ALIGNMENT
        yield (start, stop), (top, min(length, -(-(stop + halo) // ALIGNMENT) * ALIGNMENT))


@dataclass(frozen=True)
class Cost:
    """Bytes per pixel: while the network sees it, and while it is read, waits or is written.

    A pixel of volumes is that of all planes, since blocks are never cut along Z."""

    computed: float
    moved: float

    @classmethod
    def of(cls, answer: Callable[[Tensor], Tensor], channels: int, outputs: int, sample: Tensor) -> "Cost":
        """Measured on a sample (1, C, *S). channels, outputs: of the input and the output, of all planes."""
        peak = _Peak()
        with peak:
            answer(sample)
        # Two blocks of the input wait or are seen; of the output one is computed, one waits, one is written
        # (in float64, where it is rounded; and compressed).
        moved = 4 * (3 * channels + 6 * outputs)
        return cls(peak.bytes / math.prod(sample.shape[-2:]), moved)


def fitting(
    shape: tuple[int, ...],
    grain: tuple[int, int, int],
    halo_of: Callable[[], int],
    cost: Cost,
    ceiling: float,
) -> Plan:
    """The tiles that see the fewest pixels altogether, among those that fit.

    shape: of the frames (N, C, *S). grain: frames, rows and columns that have to be written together.
    halo_of: is asked where whole frames do not fit.
    Errors: not even one grain fits.
    """
    depth, room = grain[0], SHARE * ceiling - FIXED
    most = int(room / (cost.computed + depth * cost.moved))  # pixels that may be seen at once
    if (pixels := shape[-2] * shape[-1]) <= most:
        batch = max(1, min(MOST_FRAMES, int(room / pixels / (cost.computed + cost.moved))))
        frames = max(depth, batch // depth * depth)
        return Plan(shape[-2], shape[-1], frames, min(batch, frames))
    halo = halo_of()
    sides = [_sides(n, each, halo) for n, each in zip(shape[-2:], grain[1:], strict=True)]
    fit = [(h, w) for h, w in product(*sides) if h.seen * w.seen <= most]
    if not fit:
        least = min(h.seen * w.seen for h, w in product(*sides))
        need = (least * (cost.computed + depth * cost.moved) + FIXED) / SHARE
        raise UserError(
            f"memory: got {ceiling / 1e9:.3g} GB, the smallest tile needs {need / 1e9:.3g} GB (blocks of "
            f"{' x '.join(map(str, grain))}, a halo of {halo} px); pass more, or smaller --chunks or --halo"
        )
    height, width = min(fit, key=lambda hw: (hw[0].total * hw[1].total, -hw[0].kept * hw[1].kept))
    return Plan(height.kept, width.kept, depth, 1, halo)


@dataclass(frozen=True)
class _Side:
    kept: int
    seen: int  # at most, of one tile
    total: int  # of all tiles


def _sides(length: int, grain: int, halo: int) -> list[_Side]:
    """One for every number of tiles along an axis, as even as the grain allows."""
    grain = min(length, grain if grain >= ALIGNMENT else math.lcm(grain, ALIGNMENT))
    kept = {-(-length // n // grain) * grain for n in range(1, -(-length // grain) + 1)}
    found = []
    for step in sorted(kept | {grain}):
        seen = [b - a for _, (a, b) in spans(length, step, halo)]
        found.append(_Side(min(step, length), max(seen), sum(seen)))
    return found


class _Peak(TorchDispatchMode):
    """Bytes that tensors made inside take at most; alike on every machine, unlike what a system counts."""

    def __init__(self) -> None:
        super().__init__()
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        answer = func(*args, **(kwargs or {}))
        tensors = [each for each in tree_leaves(answer) if isinstance(each, Tensor)]
        self._alive = {key: each for key, each in self._alive.items() if not each[0].expired()}
        for tensor in tensors:
            storage = tensor.untyped_storage()
            self._alive[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        # Convolutions may copy what they take and give into a layout of their own.
        copies = sum(t.nbytes for t in tree_leaves((args, answer)) if isinstance(t, Tensor))
        copies = copies if "convolution" in func.__name__ else 0
        self.bytes = max(self.bytes, sum(size for _, size in self._alive.values()) + copies)
        return answer
