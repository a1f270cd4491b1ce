"""Warns if the sampler collapses or diverges in training, and says what helps."""

import logging
from collections import deque
from collections.abc import Mapping
from statistics import median

from torch import Tensor

log = logging.getLogger(__name__)
WINDOW = 100  # steps over which the KL is averaged
COLLAPSED = 8.0  # nats per patch; six collapsed levels with one free bit each have 6
FIRST, FEW = 5, 25  # steps; compares the medians of the first and the last losses, since batches vary
EXPLODED = 0.5  # increase of the loss, as a fraction of the first one


class Watch:
    """Warns once of a collapse and once of a divergence. lr: learning rate of the sampler."""

    def __init__(self, lr: float) -> None:
        self.lr = lr
        self.kl: deque[float] = deque(maxlen=WINDOW)
        self.losses: deque[float] = deque(maxlen=FEW)
        self.start: float | None = None
        self.warnings: set[str] = set()

    def __call__(
        self, step: int, losses: Mapping[str, float], logged: Mapping[str, Tensor]
    ) -> dict[str, float]:
        """Checks the losses of a step ({} if it was skipped) -> the sampler's `logged` as numbers."""
        if "sampler_loss" not in losses:
            return {}
        numbers = {name: float(value) for name, value in logged.items()}
        if kl := [value for name, value in numbers.items() if name.startswith("kl")]:
            self.kl.append(sum(kl))
        self.losses.append(losses["sampler_loss"])
        if len(self.losses) == FIRST and self.start is None:
            self.start = median(self.losses)
        self._collapse(step)
        self._explosion(step)
        return numbers

    def _collapse(self, step: int) -> None:
        if len(self.kl) == WINDOW and (mean := sum(self.kl) / WINDOW) < COLLAPSED:
            self._warn(
                "collapse",
                f"step {step}: the sampler has collapsed, with a KL of {mean:.2g} nats per patch: its draws "
                "hardly depend on the image. Raise kl_warmup (to half the steps) or free_bits, and check "
                "that the noise model is not too wide",
            )

    def _explosion(self, step: int) -> None:
        if self.start is None or len(self.losses) < FEW:
            return
        now = median(self.losses)
        if now > self.start + EXPLODED * max(1.0, abs(self.start)):
            self._warn(
                "explosion",
                f"step {step}: the sampler diverges, its loss has risen from {self.start:.3g} to {now:.3g}. "
                f"Lower lr (now {self.lr:.2g}) or clip, raise kl_warmup, or look for hot pixels in the image",
            )

    def _warn(self, what: str, text: str) -> None:
        if what not in self.warnings:
            self.warnings.add(what)
            log.warning(text)
