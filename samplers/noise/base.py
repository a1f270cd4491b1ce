"""p(noisy | signal): what a camera or detector adds to the clean image."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn


class NoiseModel(nn.Module, ABC):
    """p(noisy | signal) in raw counts on both sides; fixed while a sampler trains: no tensor of it
    requires a gradient.

    The Gaussian models take `step` and `clip`. `step` is the spacing of the recorded values (1 for
    integers); the likelihood is then the log probability of a bin of that width. With `clip`, e.g.
    (0, 255) for uint8, the two end bins hold the whole tail. At an end bin the gradient fades where
    the signal lies beyond it: a clipped pixel says no more than "at least that bright".
    """

    isotropic: bool = True
    """Whether it looks the same turned and mirrored in any way."""

    mirrors: Sequence[str] = ()
    """If not, the mirrorings that keep it the same: "y" upside down, "x" left to right, "yx" both at once."""

    @abstractmethod
    def log_likelihood(self, noisy: Tensor, signal: Tensor) -> Tensor:
        """log p(noisy | signal) in nats per pixel, shaped like the two inputs broadcast.

        A normalised density, constants included; computed in float32 even under autocast; its
        gradient with respect to `signal` vanishes nowhere, however far `noisy` lies from it.
        """

    @abstractmethod
    def sample(self, signal: Tensor) -> Tensor:
        """One noisy observation of `signal`, shaped like it."""
