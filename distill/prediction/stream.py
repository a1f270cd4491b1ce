"""Reading, computing and writing at the same time."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Block = TypeVar("Block")
Noisy = TypeVar("Noisy")
Answer = TypeVar("Answer")


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
