"""Losses that start as an average of the draws and turn into a mode while the training goes on."""

from torch import Tensor

from losses.base import Loss


class Annealed(Loss):
    """The schedule and the checks that `Tukey` and `JointMode` share.

    Args:
        warmup: fraction of the training before annealing.
        anneal: fraction of the training in which the loss changes.
        min_scale: smallest scale of the kernel, in standard deviations of the data.
        min_draws: number of draws of each image from which the scale is estimated.
    """

    def __init__(self, warmup: float, anneal: float, min_scale: float, min_draws: int) -> None:
        super().__init__()
        name = type(self).__name__
        if warmup < 0 or anneal <= 0 or warmup + anneal > 1:
            raise ValueError(
                f"{name}: got warmup={warmup}, anneal={anneal}; they are shares of the training, so warmup "
                "must be at least 0, anneal above 0, and their sum at most 1"
            )
        if min_scale <= 0 or min_draws < 3:
            raise ValueError(
                f"{name}: got min_scale={min_scale}, min_draws={min_draws}; the scale needs a positive "
                "floor and at least 3 draws"
            )
        self.warmup, self.anneal, self.min_scale, self.min_draws = warmup, anneal, min_scale, min_draws
        self.progress = 1.0

    def schedule(self, progress: float) -> None:
        self.progress = progress

    @property
    def annealed(self) -> float:
        """From 0, the start of the training, to 1, its end; 1 in eval mode."""
        return min(1.0, max(0.0, (self.progress - self.warmup) / self.anneal)) if self.training else 1.0

    def check_draws(self, draws: Tensor) -> None:
        """ValueError for fewer draws (n, B, C, *S) than `min_draws`."""
        if len(draws) < self.min_draws:
            name = type(self).__name__
            raise ValueError(f"{name}: got {len(draws)} draws, needs at least min_draws={self.min_draws}")
