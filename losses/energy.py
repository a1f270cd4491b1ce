"""A loss under which the outputs of the student are draws from the posterior."""

from collections.abc import Sequence
from itertools import combinations

import torch.nn.functional as F
from torch import Tensor

from losses.base import Loss, in_planes


class EnergyScore(Loss):
    """E|draw - sample| - E|sample - sample'| / 2, which is least if both have the same distribution.

    It is a strictly proper score (Gneiting & Raftery 2007, eq. 21), for a student that gives independent
    images in one pass, such as NoiseConditioned.

    Args:
        samples: number of images that the student gives per pass, at least 2.
        windows: sides in pixels of the blocks over which |.| is the root mean square. 1 compares the
            distribution of each pixel (CRPS); larger blocks compare how pixels vary together.
    """

    def __init__(self, samples: int = 2, windows: Sequence[int] = (1, 4, 16)) -> None:
        super().__init__()
        if samples < 2 or min(windows, default=0) < 1:
            raise ValueError(
                f"EnergyScore: got samples={samples}, windows={windows}; needs at least 2 samples and "
                "windows of at least 1 pixel"
            )
        self.samples, self.windows = samples, list(windows)
        self.outputs = ("draw", *(f"draw{i}" for i in range(2, samples + 1)))

    def forward(self, prediction: Tensor, draws: Tensor) -> Tensor:
        prediction, draws = in_planes(prediction, draws)
        samples = prediction.unflatten(1, (self.samples, -1)).transpose(0, 1)  # (m, B, C, *S)
        pairs = list(combinations(range(self.samples), 2))
        left, right = (samples[[pair[side] for pair in pairs]] for side in (0, 1))
        score = prediction.new_zeros(())
        for window in self.windows:
            to_draws = _distance(draws.unsqueeze(1), samples.unsqueeze(0), window)
            score = score + to_draws - 0.5 * _distance(left, right, window)
        return score / len(self.windows)


def _distance(a: Tensor, b: Tensor, window: int) -> Tensor:
    """Mean over blocks of the root mean square of a - b (..., C, H, W) within each block."""
    difference = a - b
    if window == 1:
        return difference.abs().mean()
    squares = difference.square().flatten(0, -4)
    side = [min(window, size) for size in squares.shape[-2:]]
    blocks = F.avg_pool2d(squares, side, [max(1, s // 2) for s in side])  # they overlap by half
    return (blocks.mean(1) + 1e-8).sqrt().mean()  # over channels; 1e-8 because the root has no slope at 0
