"""A weighted sum of several losses on the same output."""

from collections.abc import Iterable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from losses.base import Loss


class WeightedSum(Loss):
    """sum_i weights[i] * losses[i]; the student's maps are those of the first loss.

    Args:
        losses: losses with the same number of outputs.
        weights: a positive weight for each loss. Default: all 1.
    """

    def __init__(self, losses: Sequence[Loss], weights: Sequence[float] | None = None) -> None:
        super().__init__()
        weights = [1.0] * len(losses) if weights is None else list(weights)
        if not losses or len(weights) != len(losses) or min(weights) <= 0:
            raise ValueError(
                f"WeightedSum: got {len(losses)} losses and weights={weights}; needs at least one loss, "
                "and a positive weight for each"
            )
        if len({len(loss.outputs) for loss in losses}) > 1:
            described = ", ".join(f"{type(loss).__name__} {loss.outputs}" for loss in losses)
            raise ValueError(f"WeightedSum: got {described}; combine losses with equally many outputs")
        self.losses, self.weights = nn.ModuleList(losses), weights
        self.outputs = losses[0].outputs
        self.min_draws = max(loss.min_draws for loss in losses)

    def prepare(self, noisy: Tensor) -> None:
        for loss in self._parts():
            loss.prepare(noisy)

    def schedule(self, progress: float) -> None:
        for loss in self._parts():
            loss.schedule(progress)

    def forward(self, prediction: Tensor, draws: Tensor) -> Tensor:
        each = [w * loss(prediction, draws) for w, loss in zip(self.weights, self.losses, strict=True)]
        return torch.stack(each).sum()

    def maps(self, prediction: Tensor) -> dict[str, Tensor]:
        return cast(Loss, self.losses[0]).maps(prediction)

    def _parts(self) -> Iterable[Loss]:
        return cast(Iterable[Loss], self.losses)  # a ModuleList does not tell the type of its items
