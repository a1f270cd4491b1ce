"""Reading, computing and writing at the same time."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import TypeVar

Block, Noisy, Answer = TypeVar("Block"), TypeVar("Noisy"), TypeVar("Answer")


def stream(
    blocks: Sequence[Block],
    read: Callable[[Block], Noisy],
    compute: Callable[[Block, Noisy], Answer],
    write: Callable[[Block, Answer], None],
) -> Iterator[Block]:
    """Yields each block when it is written, in order.

    One thread reads the next block and one writes the last while this one computes: at most two blocks wait
    to be computed or are, and two to be written or are. numpy, torch and the codecs let others run.
    """
    if not blocks:
        return
    with ThreadPoolExecutor(1, "read") as reader, ThreadPoolExecutor(1, "write") as writer:
        coming, written = reader.submit(read, blocks[0]), None
        for block, following in pairwise([*blocks, None]):
            noisy = coming.result()
            if following is not None:
                coming = reader.submit(read, following)
            answer = compute(block, noisy)  # type: ignore[arg-type]  # only the last one is None
            if written is not None:
                written[1].result()
                yield written[0]
            written = block, writer.submit(write, block, answer)  # type: ignore[arg-type]
            del noisy, answer  # else they would live on while the next is computed
        if written is not None:
            written[1].result()
            yield written[0]  # type: ignore[misc]
