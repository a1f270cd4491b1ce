"""Any image size, for a network that takes multiples of a number."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Reflects (B, C, *S) at its far ends up to the next multiple, and images to at least two of them:
    a U-Net's own reflect padding needs 2 pixels at its coarsest level. Volumes get two along X only,
    because torch.export treats a level of a single pixel as a special case. Works from 1 pixel up."""
    if multiple == 1:
        return x
    for dim in range(2, x.ndim):
        size, least = x.shape[dim], 2 if x.ndim == 4 or dim == x.ndim - 1 else 1
        target = _larger((size + multiple - 1) // multiple, least) * multiple
        if in_a_graph(x) or target > size:  # a graph for every size cannot branch on it
            # a triangle wave reflects as often as needed, where F.pad reflects once
            period = _larger(2 * (size - 1), 1)
            index = _positions(x, target) % _number(x, period)
            x = x.index_select(dim, torch.where(index < size, index, period - index))
    return x


def crop(x: Tensor, size: Sequence[int]) -> Tensor:
    """The first `size` pixels of (B, C, *S)."""
    if not in_a_graph(x):
        return x[(..., *(slice(n) for n in size))]
    for dim, n in enumerate(size, start=2):  # whether a slice is the whole, the graph would fix for good
        x = x.index_select(dim, _positions(x, n))
    return x


def in_a_graph(x: Tensor) -> bool:
    """Whether this call is recorded, for images of any size: by torch.export or for TorchScript."""
    return torch.compiler.is_exporting() or _is_traced(x)


def _is_traced(x: Tensor) -> bool:
    """For TorchScript, which records sizes as tensors."""
    return isinstance(x.shape[-1], Tensor)


def _larger(size: Any, least: int) -> Any:
    """Of two sizes."""
    return size.clamp(min=least) if isinstance(size, Tensor) else torch.sym_max(least, size)


def _positions(x: Tensor, n: Any) -> Tensor:
    """0, 1, ... n - 1 on the device of x, which TorchScript would fix for good in an arange."""
    if _is_traced(x):
        return x.new_ones(n, dtype=torch.long).cumsum(0) - 1
    return torch.arange(n, device=x.device)


def _number(x: Tensor, n: Any) -> Tensor:
    return n if isinstance(n, Tensor) else torch.full((), n, device=x.device)
