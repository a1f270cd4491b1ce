"""Losses that compare single pixels (paper, Eqs. 4-7)."""

from torch import Tensor
from torch.nn import functional as F

from losses.base import Loss


class L2(Loss):
    """Squared error: the student learns the posterior mean, the MMSE estimate (Eq. 6)."""

    outputs = ("mean",)

    def forward(self, prediction: Tensor, draws: Tensor) -> Tensor:
        return (draws - prediction).square().mean()


class L1(Loss):
    """Absolute error: the student learns the pixel-wise median, the MMAE estimate (Eq. 5)."""

    outputs = ("median",)

    def forward(self, prediction: Tensor, draws: Tensor) -> Tensor:
        return (draws - prediction).abs().mean()


class Huber(Loss):
    """Huber loss: the student learns a value between the mean and the median (Huber, 1964).

    Args:
        delta: residual up to which the loss is quadratic, in standard deviations of the data; beyond it is
            linear. Large values give the mean, small ones the median.
    """

    outputs = ("huber",)

    def __init__(self, delta: float = 0.1) -> None:
        super().__init__()
        if delta <= 0:
            raise ValueError(f"Huber: delta must be positive, got {delta}")
        self.delta = delta

    def forward(self, prediction: Tensor, draws: Tensor) -> Tensor:
        return F.huber_loss(prediction.expand_as(draws), draws, delta=self.delta)
