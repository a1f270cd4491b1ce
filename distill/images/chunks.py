"""Arrays that are stored in chunks, on a disk or elsewhere, of which only the indexed chunks are read."""

import itertools
import math
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from distill.errors import UserError, out_of_memory
from distill.memory import check_memory


class Cache:
    """The decoded chunks that were used last, at most `limit` bytes of them."""

    def __init__(self, limit: float) -> None:
        self.limit, self.size = limit, 0
        self._chunks: OrderedDict[Any, np.ndarray] = OrderedDict()
        self._lock = threading.RLock()  # garbage collection may call `forget` at any line

    def get(self, key: Any, read: Callable[[], np.ndarray]) -> np.ndarray:
        with self._lock:
            if key in self._chunks:
                self._chunks.move_to_end(key)
                return self._chunks[key]
        chunk = read()  # two threads may read the same chunk, which costs less than waiting
        with self._lock:
            if key not in self._chunks and chunk.nbytes <= self.limit:
                self._chunks[key] = chunk
                self.size += chunk.nbytes
            self._shrink()
        return chunk

    def forget(self, owner: int) -> None:
        with self._lock:
            for key in [key for key in self._chunks if key[0] == owner]:
                self.size -= self._chunks.pop(key).nbytes

    @contextmanager
    def limited_to(self, limit: float) -> Iterator[None]:
        """Another limit inside."""
        former = self.limit
        self._set(limit)
        try:
            yield
        finally:
            self._set(former)

    def _set(self, limit: float) -> None:
        with self._lock:
            self.limit = limit
            self._shrink()

    def _shrink(self) -> None:
        while self.size > self.limit:
            self.size -= self._chunks.popitem(last=False)[1].nbytes


CACHE = Cache(2**28)
"""The cache of all arrays, so that its limit holds for the process."""


class Chunked:
    """A read-only array in chunks, which are read when they are indexed.

    Index it with whole numbers, slices and `...`.

    Args:
        shape: shape of the array.
        dtype: type of the array.
        chunks: shape of a chunk; chunks at the ends may be smaller.
        read: function from the index of a chunk (one number per axis) to its pixels. Several threads call it
            at once.
        where: function from the index of a chunk to its name in error messages.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: Any,
        chunks: tuple[int, ...],
        read: Callable[[tuple[int, ...]], np.ndarray],
        where: Callable[[tuple[int, ...]], str],
    ) -> None:
        self.shape, self.dtype, self.chunks = tuple(shape), np.dtype(dtype), tuple(chunks)
        self.ndim, self.size = len(self.shape), math.prod(self.shape)
        self._read, self._where, self._number = read, where, next(_numbers)
        size = math.prod(self.chunks) * self.dtype.itemsize
        check_memory(size, where((0,) * self.ndim), "save the image in smaller chunks")
        weakref.finalize(self, CACHE.forget, self._number)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> np.ndarray:
        bounds, within = _bounds(key, self.shape)
        grid = [range(a // c, -(-b // c)) for (a, b), c in zip(bounds, self.chunks, strict=True)]
        if math.prod(map(len, grid)) == 1:
            index = tuple(each[0] for each in grid)
            inside = zip(bounds, index, self.chunks, strict=True)
            return self._chunk(index)[tuple(slice(a - i * c, b - i * c) for (a, b), i, c in inside)][within]
        block = np.empty([b - a for a, b in bounds], self.dtype)
        for index in itertools.product(*grid):
            source, target = _overlap(bounds, index, self.chunks)
            block[target] = self._chunk(index)[source]
        return block[within]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All of it."""
        name = self._where((0,) * self.ndim)
        check_memory(self.size * self.dtype.itemsize, name, "pass a part of it, or end other programs")
        return np.asarray(self[...], dtype=dtype)

    def _chunk(self, index: tuple[int, ...]) -> np.ndarray:
        return CACHE.get((self._number, index), lambda: self._decoded(index))

    def _decoded(self, index: tuple[int, ...]) -> np.ndarray:
        try:
            chunk = np.asarray(self._read(index))
        except Exception as error:  # the decoder may raise any error for a damaged chunk
            if isinstance(error, UserError) or out_of_memory(error):
                raise
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(
                f"{self._where(index)}: cannot be read ({reason}); pass an intact copy"
            ) from error
        chunk.flags.writeable = False
        return chunk


_numbers = itertools.count()


def _bounds(key: Any, shape: tuple[int, ...]) -> tuple[list[tuple[int, int]], tuple[Any, ...]]:
    """(bounds to be read of each axis, index into that part which gives the result of `key`)."""
    bounds, within = [], []
    for each, n in zip(written_out(key, len(shape)), shape, strict=True):
        if not isinstance(each, slice):
            i = range(n)[each]  # IndexError if it is outside
            bounds.append((i, i + 1))
            within.append(0)
            continue
        inside = range(n)[each]
        bounds.append((min(inside), max(inside) + 1) if inside else (0, 0))
        within.append(slice(None, None, inside.step))
    return bounds, tuple(within)


def written_out(key: Any, ndim: int) -> list[Any]:
    """Expands an index to one part per axis: `...` and omitted parts stand for whole axes."""
    keys = list(key) if isinstance(key, tuple) else [key]
    if any(each is Ellipsis for each in keys):
        at = next(i for i, each in enumerate(keys) if each is Ellipsis)
        keys[at : at + 1] = [slice(None)] * (ndim - len(keys) + 1)
    return keys + [slice(None)] * (ndim - len(keys))


def _overlap(
    bounds: list[tuple[int, int]], index: tuple[int, ...], chunks: tuple[int, ...]
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """The overlap of a chunk with the bounds, as slices of the chunk and as slices within the bounds."""
    source, target = [], []
    for (a, b), i, c in zip(bounds, index, chunks, strict=True):
        low, high = max(a, i * c), min(b, i * c + c)
        source.append(slice(low - i * c, high - i * c))
        target.append(slice(low - a, high - a))
    return tuple(source), tuple(target)


def span(index: tuple[int, ...], shape: tuple[int, ...], chunks: tuple[int, ...]) -> tuple[slice, ...]:
    """The slices of an array that one of its chunks covers."""
    return tuple(slice(i * c, min(i * c + c, n)) for i, c, n in zip(index, chunks, shape, strict=True))
