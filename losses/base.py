"""The interface of losses, which decide the functional of the posterior that the student learns."""

from abc import ABC, abstractmethod

from torch import Tensor, nn


def in_planes(prediction: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
    """Volumes, prediction (B, K, Z, Y, X) and draws (n, B, C, Z, Y, X), as images of their planes, for losses
    that compare images; images as they are."""
    if prediction.ndim == 4:
        return prediction, draws
    return prediction.transpose(1, 2).flatten(0, 1), draws.transpose(2, 3).flatten(1, 2)


class Loss(nn.Module, ABC):
    """A loss between the student's prediction and draws, which decides what the prediction means.

    Attributes:
        outputs: names of the student's output images, the central one first. A map named "std" is a spread,
            every other map a location.
        min_draws: smallest number of draws of each image that the loss needs.
        files: constructor arguments that may name files or URLs; they are never taken from a model file.
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
        """The loss, a scalar, of a prediction (B, len(outputs) * C, *S) for draws (n, B, C, *S).

        Both are standardized, and n is at least `min_draws`.
        """

    def maps(self, prediction: Tensor) -> dict[str, Tensor]:
        """Prediction (B, len(outputs) * C, *S) -> output images by name, each (B, C, *S)."""
        return dict(zip(self.outputs, prediction.chunk(len(self.outputs), dim=1), strict=True))
