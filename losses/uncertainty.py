"""Losses whose students tell how far the posterior spreads, beside its centre."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from losses.base import Loss


class Quantiles(Loss):
    """Pinball loss: the student learns quantiles of each pixel's posterior (Koenker & Bassett, 1978).

    The maps are the level nearest 0.5 first, then the others in ascending order, named "median",
    "q05", "q95". They cannot cross: the student gives the central one, and the gaps to the next
    outer ones through a softplus. Each level's loss is divided by 2 level (1 - level), which gives
    all of them the same gradient where they are right; that of the median is L1. The tails do not
    move the central map: they learn gaps to it as it is.

    Args:
        levels: which quantiles, each strictly between 0 and 1.
    """

    def __init__(self, levels: Sequence[float] = (0.05, 0.5, 0.95)) -> None:
        super().__init__()
        if not levels or len(set(levels)) < len(levels) or not all(0 < level < 1 for level in levels):
            raise ValueError(
                f"Quantiles: got levels={list(levels)}; must be different numbers between 0 and 1, "
                "such as 0.05, 0.5, 0.95"
            )
        self.levels = tuple(sorted(levels))
        self.middle = min(range(len(levels)), key=lambda i: abs(self.levels[i] - 0.5))
        # the student's channels: the central level, then the others
        self.order = [self.middle, *(i for i in range(len(levels)) if i != self.middle)]
        self.outputs = tuple(_name(self.levels[i]) for i in self.order)

    def forward(self, prediction: Tensor, draws: Tensor) -> Tensor:
        total = draws.new_zeros(())
        for i, quantile in zip(self.order, self._quantiles(prediction, apart=True), strict=True):
            level, residual = self.levels[i], draws - quantile
            pinball = torch.maximum(level * residual, (level - 1) * residual)
            total = total + pinball.mean() / (2 * level * (1 - level))
        return total / len(self.levels)

    def maps(self, prediction: Tensor) -> dict[str, Tensor]:
        return dict(zip(self.outputs, self._quantiles(prediction), strict=True))

    def _quantiles(self, prediction: Tensor, apart: bool = False) -> list[Tensor]:
        """In the order of `outputs`; `apart` keeps the gradient of the outer ones from the centre."""
        centre, *raw = prediction.chunk(len(self.levels), dim=1)
        gaps = [F.softplus(each) for each in raw]
        start = centre.detach() if apart else centre
        below = [start - sum(gaps[i : self.middle]) for i in range(self.middle)]
        above = [start + sum(gaps[self.middle : i + 1]) for i in range(self.middle, len(gaps))]
        return [centre, *below, *above]


class MeanVariance(Loss):
    """The student learns the posterior's mean, by L2, and its std.

    The std's own loss is std + (draw - mean)^2 / std with the mean held fixed: least where std^2 is
    the expected squared residual. Its gradient is that of the beta-NLL with beta = 1/2 (Seitzer et
    al., 2022), as a proper score. Unlike a Gaussian likelihood it leaves the mean's gradient alone,
    so that poor fits do not excuse themselves by a large std.

    The std is that of the clean signal under the sampler: no sensor noise is in it.

    Args:
        min_std: smallest std, in standard deviations of the data.
    """

    outputs = ("mean", "std")

    def __init__(self, min_std: float = 1e-3) -> None:
        super().__init__()
        if min_std <= 0:
            raise ValueError(f"MeanVariance: min_std must be positive, got {min_std}")
        self.min_std = min_std

    def forward(self, prediction: Tensor, draws: Tensor) -> Tensor:
        mean, std = self.maps(prediction).values()
        squared = (draws - mean).square()
        return squared.mean() + (std + squared.detach() / std).mean()

    def maps(self, prediction: Tensor) -> dict[str, Tensor]:
        mean, raw = prediction.chunk(2, dim=1)
        return {"mean": mean, "std": self.min_std + F.softplus(raw)}


def _name(level: float) -> str:
    return "median" if level == 0.5 else f"q{100 * level:02g}"
