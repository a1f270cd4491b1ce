"""Reads the patches of the next updates while the current one is computed."""

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from distill.hardware import cores
from distill.images.chunks import CACHE
from distill.memory import free_memory
from distill.training.patches import Patches

AHEAD = 16  # batches that are read in advance: enough to wait for slow chunks without a pause
AHEAD_BYTES = 2**26  # limit of their size, because large batches need fewer
MOST_CACHED = 2**33  # bytes of decoded chunks, however much memory is free


@contextmanager
def loaded(
    patches: Patches,
    batch_size: int,
    generator: np.random.Generator,
    allowed: Sequence[int],
    part: slice = slice(None),
    cached: float | None = None,
) -> Iterator[Iterator[torch.Tensor]]:
    """Yields an endless iterator of the batches that repeated calls of `patches.sample` would return.

    All random numbers are drawn here in order, and the threads only read. After each batch, the state of
    `generator` is the one that `sample` would leave, however many batches were read in advance, so a run
    that is stopped resumes with the next batch. Inside, decoded chunks are kept, because a patch is much
    smaller than the chunks that have to be decoded for it.

    Args:
        patches: source of the patches.
        batch_size: patches in a batch.
        generator: random numbers of the positions and orientations.
        allowed: orientations that patches may have, see `Patches.sample`.
        part: the part of each batch that is read. Default: all of it.
        cached: most bytes of decoded chunks. Default: half of the free memory, at most MOST_CACHED.
    """
    threads = ThreadPoolExecutor(max(1, min(4, cores() - 1)), "patches")
    size = 4 * batch_size * patches.frames.shape[1] * math.prod(patches.sides)
    ahead = max(2, min(AHEAD, AHEAD_BYTES // size))
    lookahead = np.random.default_rng()
    lookahead.bit_generator.state = generator.bit_generator.state
    pending: deque[tuple[Future[torch.Tensor], Mapping[str, Any]]] = deque()

    def batches() -> Iterator[torch.Tensor]:
        while True:
            while len(pending) < ahead:
                places = patches.places(batch_size, lookahead, allowed, part)
                pending.append((threads.submit(patches.cut, places), lookahead.bit_generator.state))
            batch, state = pending.popleft()
            result = batch.result()
            generator.bit_generator.state = state
            yield result

    try:
        with CACHE.limited_to(cached or min(free_memory() / 2, MOST_CACHED)):
            yield batches()
    finally:
        threads.shutdown(cancel_futures=True)
