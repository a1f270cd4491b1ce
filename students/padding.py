"""Any image size, for a network that takes multiples of a number."""

from collections.abc import Sequence

import torch
from torch import Tensor


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Reflects (B, C, *S) at its far ends up to the next multiple, and to at least two of them:
    a U-Net's own reflect padding needs 2 pixels at its coarsest level. Works from 1 pixel up."""
    if multiple == 1:
        return x
    for dim in range(2, x.ndim):
        size = x.shape[dim]
        target = torch.sym_max(2, (size + multiple - 1) // multiple) * multiple
        if torch.compiler.is_exporting() or target > size:  # a graph for every size cannot branch on it
            # a triangle wave reflects as often as needed, where F.pad reflects once
            period = torch.sym_max(2 * (size - 1), 1)
            index = torch.arange(target, device=x.device) % torch.full((), period, device=x.device)
            x = x.index_select(dim, torch.where(index < size, index, period - index))
    return x


def crop(x: Tensor, size: Sequence[int]) -> Tensor:
    """The first `size` pixels of (B, C, *S)."""
    if not torch.compiler.is_exporting():
        return x[(..., *(slice(n) for n in size))]
    for dim, n in enumerate(size, start=2):  # whether a slice is the whole, the graph would fix for good
        x = x.index_select(dim, torch.arange(n, device=x.device))
    return x
