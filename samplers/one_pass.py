"""A posterior sampler from a trained network that draws in one pass."""

from collections.abc import Callable, Iterator
from typing import cast

import torch
from torch import Tensor, nn

from samplers.base import PosteriorSampler, evaluating

_LIKE_THE_INPUT = {"out_channels": None, "scale": 1, "out_names": ()}


class OnePassSampler(PosteriorSampler):
    """A frozen sampler around a denoiser whose output maps are draws.

    Args:
        denoiser: module with a method maps(noisy (B, C, *S)) -> {name: draw (B, C', *S')}, which returns
            independent draws in raw counts, new ones on every call. `distill.load_denoiser` gives one from a
            run that was trained with EnergyScore.
    """

    def __init__(self, denoiser: nn.Module) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.declare(*(getattr(denoiser, name, other) for name, other in _LIKE_THE_INPUT.items()))
        self.conditions = getattr(denoiser, "conditions", 0)

    def draws(self, noisy: Tensor, n: int) -> Iterator[Tensor]:
        maps = cast(Callable[[Tensor], dict[str, Tensor]], self.denoiser.maps)
        left = n
        while left > 0:
            with evaluating(self):
                draws = list(maps(noisy).values())[:left]
            yield from draws
            left -= len(draws)

    def sample(self, noisy: Tensor, n: int = 1) -> Tensor:
        return torch.stack(list(self.draws(noisy, n)))
