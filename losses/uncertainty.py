"""Losses whose students predict the spread of the posterior beside its centre."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from losses.base import Loss


class Quantiles(Loss):
    """Pinball loss: the student learns quantiles of each pixel's posterior (Koenker & Bassett, 1978).

    The first map is the level nearest 0.5, followed by the others in ascending order; their names are
    "median", "q05", "q95" and so on. Quantiles cannot cross: the student predicts the central one, and the
    gaps to the next outer ones through a softplus. The loss of each level is divided by 2 level (1 - level),
    which gives all levels the same gradient near their solution; for the median it is L1. The outer levels
    do not influence the central map.

    Args:
        levels: levels of the quantiles, each strictly between 0 and 1.
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
        """Quantiles in the order of `outputs`; `apart` keeps the gradient of outer levels from the centre."""
        centre, *raw = prediction.chunk(len(self.levels), dim=1)
        gaps = [F.softplus(each) for each in raw]
        start = centre.detach() if apart else centre
        below = [start - sum(gaps[i : self.middle]) for i in range(self.middle)]
        above = [start + sum(gaps[self.middle : i + 1]) for i in range(self.middle, len(gaps))]
        return [centre, *below, *above]


class MeanVariance(Loss):
    """L2 for the mean and a second loss for the std: the student learns both for each pixel.

    The loss of the std is std + (draw - mean)^2 / std with the mean held fixed, which is least if std^2 is
    the expected squared residual. Its gradient is that of the beta-NLL with beta = 1/2 (Seitzer et al.,
    2022), as a proper score. Unlike a Gaussian likelihood it does not change the gradient of the mean, so a
    large std cannot make up for a poor mean.

    The std is that of the clean signal under the sampler; it does not contain the noise of the sensor.

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
