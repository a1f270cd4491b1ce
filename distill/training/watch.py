"""A sampler that collapses or explodes while it trains, told in one line with what helps."""

import logging
from collections import deque
from collections.abc import Mapping
from statistics import median

from torch import Tensor

log = logging.getLogger(__name__)
WINDOW = 100  # steps over which a KL counts
COLLAPSED = 8.0  # nats per patch; six levels that have collapsed on one free bit each have 6
FIRST, FEW = 5, 25  # steps whose median losses are compared, for one bad batch says nothing
EXPLODED = 0.5  # of the first loss, above it


class Watch:
    """Warns once of each. lr: what the sampler is trained with."""

    def __init__(self, lr: float) -> None:
        self.lr = lr
        self.kl: deque[float] = deque(maxlen=WINDOW)
        self.losses: deque[float] = deque(maxlen=FEW)
        self.start: float | None = None
        self.told: set[str] = set()

    def __call__(
        self, step: int, losses: Mapping[str, float], logged: Mapping[str, Tensor]
    ) -> dict[str, float]:
        """Losses of a step, none if it was skipped, and the sampler's `logged` -> the latter as numbers."""
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
            self._tell(
                "collapse",
                f"step {step}: the sampler has collapsed, with a KL of {mean:.2g} nats per patch: its draws "
                "tell next to nothing of the image. Raise kl_warmup (to half the steps) or free_bits, and "
                "check that the noise model is not too wide",
            )

    def _explosion(self, step: int) -> None:
        if self.start is None or len(self.losses) < FEW:
            return
        now = median(self.losses)
        if now > self.start + EXPLODED * max(1.0, abs(self.start)):
            self._tell(
                "explosion",
                f"step {step}: the sampler diverges, its loss has risen from {self.start:.3g} to {now:.3g}. "
                f"Lower lr (now {self.lr:.2g}) or clip, raise kl_warmup, or look for hot pixels in the image",
            )

    def _tell(self, what: str, text: str) -> None:
        if what not in self.told:
            self.told.add(what)
            log.warning(text)
