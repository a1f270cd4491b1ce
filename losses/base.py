"""A loss decides which functional of the posterior the student learns."""

from abc import ABC, abstractmethod

from torch import Tensor, nn


class Loss(nn.Module, ABC):
    """What the student's output means: the functional of the posterior that this loss elicits.

    outputs: the names of the student's output images, the central one first. A map named "std"
    is a spread; every other one is a location.
    """

    outputs: tuple[str, ...] = ("mean",)

    @abstractmethod
    def forward(self, prediction: Tensor, draws: Tensor) -> Tensor:
        """prediction (B, len(outputs)*C, *S), draws (n, B, C, *S), both standardised -> scalar."""

    def maps(self, prediction: Tensor) -> dict[str, Tensor]:
        """(B, len(outputs)*C, *S) -> the named output images, each (B, C, *S)."""
        return dict(zip(self.outputs, prediction.chunk(len(self.outputs), dim=1), strict=True))
