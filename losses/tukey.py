"""Tukey's biweight: the student learns the mode (Belagiannis et al., 2015, with another scale)."""

from torch import Tensor

from losses.base import Loss

STEEPEST = 96 / (25 * 5**0.5)  # largest slope of 1 - (1 - u^2)^3, at u = 1 / sqrt(5)


class Tukey(Loss):
    """Robust error that ignores draws further than c scales away: the student learns a mode.

    With u = (draw - prediction) / (c * scale) it is 1 - (1 - u^2)^3 where |u| < 1, and 1 beyond. So
    its minimiser is the peak of each pixel's marginal posterior, smoothed by a triweight kernel of
    half-width c * scale: the mode for small c, the mean for large. Modes of single pixels need not
    form the joint mode. A pixel's scale is 1.4826 * MAD of its draws, their std if they are Gaussian.
    The loss is multiplied by c * scale: its slope then is at most 1, like that of L1, everywhere.

    It sees no further than c scales. Therefore `schedule` starts with L1 for a share `warmup` of the
    training, goes over to the biweight during a share `anneal`, in which c falls geometrically from
    `start` to its value, and stays there. At any time a prediction that is more than `start` scales
    from the median of the draws is drawn to it as by L1. In eval mode, thus in validation, and without
    a schedule, c has its final value: `patience` should outlast warm-up and annealing.

    Args:
        c: half-width of the kernel in scales. Up to 1 seeks the mode: the middle of two sharp modes, as
            likely as each other, repels predictions for c from 0.7 to 1.5. From 4 on it is nearly the
            mean. The smaller c, the noisier: for Gaussian draws 0.8 needs 18 times as many as L2, 1
            needs 10 and 2 needs 2 times as many.
        start: c when annealing starts.
        warmup: share of the training with L1 alone.
        anneal: share of the training in which c falls.
        min_scale: smallest scale, in standard deviations of the data.
        min_draws: draws of each image, from which the scale is estimated. Few draws widen the kernel: of
            Gamma(2) draws, whose peak is at 1, those of 8 give 1.55 at c = 2, of 32 1.50, of 10,000 1.45; at
            c = 0.8 all give 1.10. Take 32 or more for c from 2 on.
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
        super().__init__()
        if not 0 < c <= start:
            raise ValueError(f"Tukey: got c={c}, start={start}; c must be positive and at most start")
        if warmup < 0 or anneal <= 0 or warmup + anneal > 1:
            raise ValueError(
                f"Tukey: got warmup={warmup}, anneal={anneal}; they are shares of the training, so warmup "
                "must be at least 0, anneal above 0, and their sum at most 1"
            )
        if min_scale <= 0 or min_draws < 3:
            raise ValueError(
                f"Tukey: got min_scale={min_scale}, min_draws={min_draws}; the scale needs a positive "
                "floor and at least 3 draws"
            )
        self.c, self.start, self.warmup, self.anneal = c, start, warmup, anneal
        self.min_scale, self.min_draws = min_scale, min_draws
        self.progress = 1.0

    def schedule(self, progress: float) -> None:
        self.progress = progress

    def forward(self, prediction: Tensor, draws: Tensor) -> Tensor:
        if len(draws) < self.min_draws:
            raise ValueError(f"Tukey: got {len(draws)} draws, needs at least min_draws={self.min_draws}")
        annealed = 1.0
        if self.training:
            annealed = min(1.0, max(0.0, (self.progress - self.warmup) / self.anneal))
        c = self.start * (self.c / self.start) ** annealed
        middle = _median(draws)
        # 1.4826 for the std of Gaussian draws, n / (n - 0.8) for few of them (Croux & Rousseeuw, 1992)
        scale = 1.4826 * _median((draws - middle).abs()) * len(draws) / (len(draws) - 0.8)
        scale = scale.detach().clamp_min(self.min_scale)

        residual = draws - prediction  # (n, B, C, *S)
        inside = (1 - (residual / (c * scale)).square()).clamp_min(0)
        biweight = c * scale * (1 - inside**3) / STEEPEST
        far = ((middle - prediction).abs() - self.start * scale).clamp_min(0)
        return annealed * biweight.mean() + (1 - annealed) * residual.abs().mean() + far.mean()


def _median(draws: Tensor) -> Tensor:
    """Over the first dimension; of an even number the mean of the middle two, unlike torch.median."""
    ordered, n = draws.sort(dim=0).values, len(draws)
    return (ordered[(n - 1) // 2] + ordered[n // 2]) / 2
