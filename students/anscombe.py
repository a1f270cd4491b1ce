"""The transform after which the noise of photons has a standard deviation of 1."""

from torch import Tensor

DARK = 2 * (3 / 8) ** 0.5  # z of no photons


def anscombe(counts: Tensor, gain: Tensor, offset: Tensor) -> Tensor:
    """Raw counts (B, C, H, W) -> z = 2 sqrt(y + 3/8) of the photons y = counts / gain + offset / gain^2.

    The generalised Anscombe transform (Anscombe 1948; Makitalo & Foi 2013) of noise of variance
    gain * signal + offset. It is continued in a straight line where read noise extends below y = 0.

    Args:
        gain, offset: (C, 1, 1), gain above 0.
    """
    photons = counts / gain + offset / gain**2
    return 2 * (photons.clamp(min=0) + 3 / 8).sqrt() + photons.clamp(max=0) * 2 / DARK
