"""A loss decides which functional of the posterior the student learns."""

from abc import ABC, abstractmethod

from torch import Tensor, nn


class Loss(nn.Module, ABC):
    """What the student's output means: the functional of the posterior that this loss elicits.

    outputs: the names of the student's output images, the central one first. A map named "std"
    is a spread; every other one is a location.
    min_draws: how many draws of each image the loss needs at least.
    files: constructor arguments that may name files, or URLs; they are never taken from a model file.
    """

    outputs: tuple[str, ...] = ("mean",)
    min_draws: int = 1
    files: tuple[str, ...] = ()

    def prepare(self, noisy: Tensor) -> None:
        """Called once before training with a few standardized images (N, C, *S). Register anything
        you derive from them as a buffer, so that checkpoints contain it. Default: nothing."""

    def schedule(self, progress: float) -> None:
        """Called before every update with the fraction of training that is done, from 0 to 1.
        Default: nothing."""

    @abstractmethod
    def forward(self, prediction: Tensor, draws: Tensor) -> Tensor:
        """prediction (B, len(outputs)*C, *S), draws (n, B, C, *S), both standardized -> scalar.

        With `min_draws` above 1, n is at least that.
        """

    def maps(self, prediction: Tensor) -> dict[str, Tensor]:
        """(B, len(outputs)*C, *S) -> the named output images, each (B, C, *S)."""
        return dict(zip(self.outputs, prediction.chunk(len(self.outputs), dim=1), strict=True))
