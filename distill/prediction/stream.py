"""Reading, computing and writing at the same time."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np

from distill.images.chunks import CACHE
from distill.memory import free_on
from distill.prediction.blocks import Prediction
from distill.prediction.plan import CACHED, Block, Plan

Item = TypeVar("Item")
Noisy = TypeVar("Noisy")
Answer = TypeVar("Answer")
Write = Callable[[Block, list[np.ndarray]], None]


@dataclass(frozen=True)
class Workers:
    """Who computes the blocks.

    room: bytes that the tiles of each may need. device: the type of what they compute on. compute: yields
    each block when it is written, in any order.
    """

    room: float
    device: str
    compute: Callable[[Plan, Sequence[Block], Write], Iterator[Block]]


def this_process(job: Prediction, ceiling: float | None) -> Workers:
    device = job.hardware.device
    return Workers(ceiling or free_on(device) / 2, device.type, partial(_computed_here, job))


def _computed_here(job: Prediction, plan: Plan, blocks: Sequence[Block], write: Write) -> Iterator[Block]:
    compute = partial(job.compute, job.in_tiles(plan.halo), plan.batch)
    with CACHE.limited_to(CACHED):
        yield from stream(blocks, job.read, compute, write)


def stream(
    blocks: Sequence[Item],
    read: Callable[[Item], Noisy],
    compute: Callable[[Item, Noisy], Answer],
    write: Callable[[Item, Answer], None],
) -> Iterator[Item]:
    """Yields each block when it is written, in order.

    One thread reads the next block and one writes the last while this one computes: at most two blocks wait
    to be computed or are, and two to be written or are. numpy, torch and the codecs let others run.
    """
    if not blocks:
        return
    with ThreadPoolExecutor(1, "read") as reader, ThreadPoolExecutor(1, "write") as writer:
        coming, writing = reader.submit(read, blocks[0]), None
        for i, block in enumerate(blocks):
            noisy = coming.result()
            if i + 1 < len(blocks):
                coming = reader.submit(read, blocks[i + 1])
            answer = compute(block, noisy)
            if writing is not None:
                writing.result()
                yield blocks[i - 1]
            writing = writer.submit(write, block, answer)
            del noisy, answer  # else they would live on while the next is computed
        if writing is not None:
            writing.result()
            yield blocks[-1]
