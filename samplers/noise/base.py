"""The interface of noise models p(noisy | signal)."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn


class NoiseModel(nn.Module, ABC):
    """p(noisy | signal), with both in raw counts.

    A noise model is fixed while a sampler trains: none of its tensors requires a gradient.

    The Gaussian models take `step` and `clip`. `step` is the spacing of the recorded values (1 for
    integers); the likelihood is then the log probability of a bin of that width. With `clip`, such as
    (0, 255) for uint8, each of the two end bins contains the whole tail. The gradient at an end bin fades
    for a signal beyond it, because a clipped pixel says no more than "at least that bright".
    """

    isotropic: bool = True
    """Whether the noise looks the same when it is turned or mirrored in any way."""

    mirrors: Sequence[str] = ()
    """Otherwise, the mirrorings that do not change it: "y" upside down, "x" left to right, "yx" both."""

    @abstractmethod
    def log_likelihood(self, noisy: Tensor, signal: Tensor) -> Tensor:
        """log p(noisy | signal) in nats per pixel, in the shape that both inputs broadcast to.

        The density is normalised, with all constants, and computed in float32 even under autocast. Its
        gradient with respect to `signal` vanishes nowhere, however far `noisy` is from `signal`.
        """

    @abstractmethod
    def sample(self, signal: Tensor) -> Tensor:
        """Draws one noisy observation of `signal`, in the same shape."""


def unchanged_by(laws: Sequence[Any]) -> tuple[bool, list[str]]:
    """What noise models and samplers have in common: (whether all are isotropic, mirrors that all allow)."""
    mirrors = [way for way in ("y", "x", "yx") if all(each.isotropic or way in each.mirrors for each in laws)]
    return all(each.isotropic for each in laws), mirrors
