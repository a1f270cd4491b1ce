"""Patches for the next updates, read while the present one is computed."""

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

AHEAD, AHEAD_BYTES = 16, 2**26  # batches: enough to even out chunks that take long; but not many large ones

MOST_CACHED = 2**33  # bytes: enough of any image, where much is free or nothing tells


@contextmanager
def loaded(
    patches: Patches,
    batch_size: int,
    generator: np.random.Generator,
    allowed: Sequence[int],
    part: slice = slice(None),
) -> Iterator[Iterator[torch.Tensor]]:
    """Inside, batches without end: those that `patches.sample` would give, one after the other, or a part
    of each.

    What is random is decided here, in order, and threads only read. After each batch the generator is where
    `sample` would have left it, whatever was read ahead: a run that is stopped there resumes with the next.
    Meanwhile decoded chunks may take half of the memory that is free, for a patch costs less than its chunk.
    """
    threads = ThreadPoolExecutor(max(1, min(4, cores() - 1)), "patches")
    size = 4 * batch_size * patches.frames.shape[1] * math.prod(patches.sides)
    ahead = max(2, min(AHEAD, AHEAD_BYTES // size))
    coming = np.random.default_rng()
    coming.bit_generator.state = generator.bit_generator.state
    pending: deque[tuple[Future[torch.Tensor], Mapping[str, Any]]] = deque()

    def batches() -> Iterator[torch.Tensor]:
        while True:
            while len(pending) < ahead:
                places = patches.places(batch_size, coming, allowed, part)
                pending.append((threads.submit(patches.cut, places), coming.bit_generator.state))
            batch, state = pending.popleft()
            result = batch.result()
            generator.bit_generator.state = state
            yield result

    try:
        with CACHE.limited_to(min(free_memory() / 2, MOST_CACHED)):
            yield batches()
    finally:
        threads.shutdown(cancel_futures=True)
