"""Plans the blocks in which an image is read, computed and written, so that they fit into the memory."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from distill.errors import UserError

ALIGNMENT = 64  # px; input tiles start at its multiples, so that networks downsample all on the same grid
CACHED = 2.0**26  # bytes of decoded chunks in memory, for neighbouring tiles in the same chunks
FIXED = 48e6 + CACHED  # bytes for threads, libraries and their caches, whatever the tiles
SHARE = 0.5  # share of the memory for tiles, since freed memory is fragmented (see `keep_freed_memory`)
MOST_FRAMES = 64  # in a batch


@dataclass(frozen=True)
class Block:
    """`count` frames from `first` on, and ranges of their rows and columns: written ones, and seen ones."""

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
    """Division of an image into blocks.

    height, width: size of the tiles, in pixels. frames: number of frames in a block. batch: number of frames
    that are computed at once. halo: in pixels; None if whole frames fit and no halo was passed.
    """

    height: int
    width: int
    frames: int
    batch: int
    halo: int | None = None

    def blocks(self, shape: tuple[int, ...], length: int) -> list[Block]:
        """All blocks of frames of shape (N, C, *S); a block of volumes has all their planes.

        length: number of frames along the last axis of frames; no block contains frames of two such rows.
        """
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
    """(start, stop) of the written pixels and of the seen pixels of each tile along one axis."""
    for start in range(0, length, step):
        stop = min(start + step, length)
        top = max(0, start - halo) // ALIGNMENT * ALIGNMENT
        yield (start, stop), (top, min(length, -(-(stop + halo) // ALIGNMENT) * ALIGNMENT))


@dataclass(frozen=True)
class Cost:
    """Bytes of memory per pixel: in the network, and while it is read, waits or is written.

    A pixel of volumes counts with all its planes.
    """

    computed: float
    moved: float

    @classmethod
    def of(cls, answer: Callable[[Tensor], Tensor], channels: int, outputs: int, sample: Tensor) -> "Cost":
        """Measures the memory of `answer` for so many input and output channels, of volumes times planes.

        sample: image (1, C, *s) for the measurement.
        """
        peak = _Peak()
        with peak:
            answer(sample)
        # Of the input, two blocks wait or are computed. Of the output, one is computed, one waits and one is
        # written: in float64 if it is rounded, and in a compressed copy.
        moved = 4 * (3 * channels + 6 * outputs)
        return cls(peak.bytes / math.prod(sample.shape[-2:]), moved)


def fitting(
    shape: tuple[int, ...],
    grain: tuple[int, int, int],
    halo_of: Callable[[], int],
    cost: Cost,
    ceiling: float,
) -> Plan:
    """The plan with the least total number of computed pixels, among those that fit into the memory.

    shape: shape of the frames (N, C, *S).
    grain: numbers of frames, rows and columns that have to be written together.
    halo_of: returns the halo in pixels. Called only if whole frames do not fit, because that takes time.
    cost: memory per pixel.
    ceiling: most memory, in bytes.
    Raises UserError if not even one grain fits.
    """
    depth, room = grain[0], SHARE * ceiling - FIXED
    most = int(room / (cost.computed + depth * cost.moved))  # pixels of an input tile
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
            f"memory: got {ceiling / 1e9:.3g} GB, but the smallest tile needs {need / 1e9:.3g} GB (blocks of "
            f"{' x '.join(map(str, grain))}, a halo of {halo} px); pass more, or smaller --chunks or --halo"
        )
    height, width = min(fit, key=lambda hw: (hw[0].total * hw[1].total, -hw[0].kept * hw[1].kept))
    return Plan(height.kept, width.kept, depth, 1, halo)


@dataclass(frozen=True)
class _Side:
    kept: int  # written pixels of one tile
    seen: int  # seen pixels of the largest tile
    total: int  # seen pixels of all tiles


def _sides(length: int, grain: int, halo: int) -> list[_Side]:
    """One for each possible number of tiles along an axis, which are as equal as the grain allows."""
    grain = min(length, grain if grain >= ALIGNMENT else math.lcm(grain, ALIGNMENT))
    kept = {-(-length // n // grain) * grain for n in range(1, -(-length // grain) + 1)}
    sides = []
    for step in sorted(kept | {grain}):
        widths = [b - a for _, (a, b) in spans(length, step, halo)]
        sides.append(_Side(min(step, length), max(widths), sum(widths)))
    return sides


class _Peak(TorchDispatchMode):
    """Measures the peak memory of new tensors, in bytes: the same on every machine, unlike process memory."""

    def __init__(self) -> None:
        super().__init__()
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.bytes = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # to skip the compiler, torch would import it, which takes seconds

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        answer = func(*args, **(kwargs or {}))
        tensors = [each for each in tree_leaves(answer) if isinstance(each, Tensor)]
        self._alive = {key: each for key, each in self._alive.items() if not each[0].expired()}
        for tensor in tensors:
            storage = tensor.untyped_storage()
            self._alive[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        # Convolutions may copy their inputs and outputs to another memory layout.
        copies = sum(t.nbytes for t in tree_leaves((args, answer)) if isinstance(t, Tensor))
        copies = copies if "convolution" in func.__name__ else 0
        self.bytes = max(self.bytes, sum(size for _, size in self._alive.values()) + copies)
        return answer
