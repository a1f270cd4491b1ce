"""The mode of the joint law of small patches, by mean shift (Comaniciu & Meer, 2002)."""

import torch
from torch import Tensor
from torch.nn import functional as F

from losses.annealed import Annealed
from losses.tukey import STEEPEST


class JointMode(Annealed):
    """Tukey's biweight of whole patches: the student learns a likely patch, not likely pixels.

    The distance of two patches is the root mean square of their difference. With u = distance(draw,
    prediction) / h it is 1 - (1 - u^2)^3 where u < 1, and 1 beyond, averaged over all `window` x `window`
    patches of an image, which overlap. For one patch the minimiser is the peak of its joint posterior after
    smoothing by a triweight kernel of radius h: the joint mode for small h, the mean for large h. Of a whole
    image it maximises the sum of these smoothed densities, each times its h, over the patches.

    It keeps what the modes of single pixels (Tukey) lose: of a spot that lies in one of three places, each
    with a probability below 1/2, every pixel's mode is dark; the joint mode shows it in the likeliest place.

    The final h is `c` times the median distance of a draw of the patch to the nearest other one, which is
    about the width of a mode whatever the distance between modes. `schedule` starts with an h that contains
    the draws, three times their distance to their mean, for the fraction `warmup` of the training, and then
    lets it fall geometrically during the fraction `anneal`. So the student starts at the mean and follows the
    peak of ever less smoothed densities, which need not end in the highest one. In eval mode and without a
    schedule h is the final one. The loss is multiplied by h, so its slope is at most 1. A prediction that is
    further from the mean than the first h is drawn towards it.

    Args:
        c: final radius of the kernel, in distances between neighbouring draws.
        window: side of the patches in pixels, at least 2; in smaller images, their side.
        warmup: fraction of the training with the first radius.
        anneal: fraction of the training in which the radius falls.
        min_scale: smallest distance between neighbouring draws, in standard deviations of the data.
        min_draws: number of draws of each image. Of two modes, one that often has less than two of the draws
            widens the kernel.
    """

    outputs = ("joint_mode",)

    def __init__(
        self,
        c: float = 2.0,
        window: int = 3,
        warmup: float = 0.2,
        anneal: float = 0.4,
        min_scale: float = 0.01,
        min_draws: int = 16,
    ) -> None:
        super().__init__(warmup, anneal, min_scale, min_draws)
        if c <= 0 or window < 2:
            raise ValueError(
                f"JointMode: got {c=}, {window=}; c must be above 0, window at least 2 (for single pixels "
                "use Tukey)"
            )
        self.c, self.window = c, window

    def forward(self, prediction: Tensor, draws: Tensor) -> Tensor:
        self.check_draws(draws)
        mean = draws.mean(dim=0)
        with torch.no_grad():
            narrow = self.c * self._to_nearest(draws).median(dim=0).values.clamp_min(self.min_scale)
            widest = (3 * self._squares(draws - mean).mean(dim=0).sqrt()).maximum(narrow)
            radius = widest * (narrow / widest) ** self.annealed  # (B, 1, H', W'), of every patch
        inside = (1 - self._squares(draws - prediction) / radius.square()).clamp_min(0)
        biweight = radius * (1 - inside**3) / STEEPEST
        far = ((self._squares(prediction - mean) + 1e-12).sqrt() - widest).clamp_min(0)
        return biweight.mean() + far.mean()

    def _to_nearest(self, draws: Tensor) -> Tensor:
        """(n, B, C, H, W) -> the distance of each draw to the nearest other one, (n, B, 1, H', W')."""
        nearest = []
        for i, draw in enumerate(draws):
            others = torch.cat([draws[:i], draws[i + 1 :]])
            nearest.append(self._squares(others - draw).amin(dim=0).sqrt())
        return torch.stack(nearest)

    def _squares(self, difference: Tensor) -> Tensor:
        """(..., C, H, W) -> the mean square over each patch and all channels (..., 1, H', W')."""
        squares = difference.square().mean(dim=-3, keepdim=True)
        side = [min(self.window, size) for size in squares.shape[-2:]]
        return F.avg_pool2d(squares.flatten(0, -4), side, 1).unflatten(0, squares.shape[:-3])
