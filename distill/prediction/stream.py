"""Reads, computes and writes blocks at the same time."""

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
    """The processes that compute blocks: this one, or those of a cluster.

    room: most memory for the tiles of each process, in bytes. device: type of their device. compute: yields
    each block after it is written, in any order.
    """

    room: float
    device: str
    compute: Callable[[Plan, Sequence[Block], Write], Iterator[Block]]


def this_process(job: Prediction, ceiling: float | None) -> Workers:
    """This process as the only worker. ceiling: most memory, in bytes. Default: half of the free memory."""
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
    """Yields each block after it is written, in order.

    While this thread computes a block, another one reads the next block and a third one writes the previous
    block. So at most two blocks of the input and two of the output are in memory. Threads are enough, because
    numpy, torch and the codecs release the interpreter lock.
    """
    if not blocks:
        return
    with ThreadPoolExecutor(1, "read") as reader, ThreadPoolExecutor(1, "write") as writer:
        reading, writing = reader.submit(read, blocks[0]), None
        for i, block in enumerate(blocks):
            noisy = reading.result()
            if i + 1 < len(blocks):
                reading = reader.submit(read, blocks[i + 1])
            answer = compute(block, noisy)
            if writing is not None:
                writing.result()
                yield blocks[i - 1]
            writing = writer.submit(write, block, answer)
            del noisy, answer  # otherwise they occupy memory while the next block is computed
        if writing is not None:
            writing.result()
            yield blocks[-1]
