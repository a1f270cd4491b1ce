"""Tukey's biweight: the student learns the mode (Belagiannis et al., 2015, with another scale)."""

from torch import Tensor

from losses.annealed import Annealed

STEEPEST = 96 / (25 * 5**0.5)  # largest slope of 1 - (1 - u^2)^3, at u = 1 / sqrt(5)


class Tukey(Annealed):
    """A robust error that ignores draws further than c scales away: the student learns a mode.

    With u = (draw - prediction) / (c * scale) it is 1 - (1 - u^2)^3 where |u| < 1, and 1 beyond. So its
    minimiser is the peak of each pixel's marginal posterior after smoothing by a triweight kernel of
    half-width c * scale: the mode for small c, the mean for large c. The modes of single pixels together need
    not be the joint mode. The scale of a pixel is 1.4826 * MAD of its draws, which is the std of Gaussian
    draws. The loss is multiplied by c * scale, so its slope is at most 1 everywhere, like that of L1.

    Draws further than c scales away have no influence. Therefore `schedule` starts with L1 for the fraction
    `warmup` of the training, changes to the biweight during the fraction `anneal`, in which c falls
    geometrically from `start` to its final value, and keeps that value. At any time, a prediction that is
    more than `start` scales away from the median of the draws is drawn towards it as under L1. In eval mode
    (in validation) and without a schedule, c has its final value; so choose a `patience` that is longer than
    warm-up and annealing.

    Args:
        c: half-width of the kernel in scales. Values up to 1 seek the mode; for c from 0.7 to 1.5 the middle
            between two sharp, equally likely modes repels predictions. From 4 on the result is nearly the
            mean. Small values are noisy: for Gaussian draws, 0.8 needs 18 times as many draws as L2, 1
            needs 10 times and 2 needs 2 times as many.
        start: value of c at the start of annealing.
        warmup: fraction of the training with L1 alone.
        anneal: fraction of the training in which c falls.
        min_scale: smallest scale, in standard deviations of the data.
        min_draws: number of draws of each image from which the scale is estimated. Few draws widen the
            kernel: for Gamma(2) draws, whose peak is at 1, the result at c = 2 is 1.55 with 8 draws, 1.50
            with 32 and 1.45 with 10,000; at c = 0.8 it is always 1.10. Take 32 or more for c from 2 on.
    """

    outputs = ("mode",)

    def __init__(
        self,
        c: float = 0.8,
        start: float = 10.0,
        warmup: float = 0.2,
        anneal: float = 0.3,
        min_scale: float = 0.01,
        min_draws: int = 8,
    ) -> None:
        super().__init__(warmup, anneal, min_scale, min_draws)
        if not 0 < c <= start:
            raise ValueError(f"Tukey: got c={c}, start={start}; c must be positive and at most start")
        self.c, self.start = c, start

    def forward(self, prediction: Tensor, draws: Tensor) -> Tensor:
        self.check_draws(draws)
        c = self.start * (self.c / self.start) ** self.annealed
        median = _median(draws)
        # 1.4826 for the std of Gaussian draws, n / (n - 0.8) for few of them (Croux & Rousseeuw, 1992)
        scale = 1.4826 * _median((draws - median).abs()) * len(draws) / (len(draws) - 0.8)
        scale = scale.detach().clamp_min(self.min_scale)

        residual = draws - prediction  # (n, B, C, *S)
        inside = (1 - (residual / (c * scale)).square()).clamp_min(0)
        biweight = c * scale * (1 - inside**3) / STEEPEST
        far = ((median - prediction).abs() - self.start * scale).clamp_min(0)
        return self.annealed * biweight.mean() + (1 - self.annealed) * residual.abs().mean() + far.mean()


def _median(draws: Tensor) -> Tensor:
    """Median over the first dimension; the mean of the middle two for an even number, unlike torch.median."""
    ordered, n = draws.sort(dim=0).values, len(draws)
    return (ordered[(n - 1) // 2] + ordered[n // 2]) / 2
