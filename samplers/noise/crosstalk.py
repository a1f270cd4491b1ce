"""Noise that spills a little into the neighbouring pixels."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from samplers.noise.base import NoiseModel
from samplers.noise.gaussian import GaussianNoise
from samplers.noise.photons import PhotonNoise

LARGEST = 0.2  # correlation, for the inverse filter to be exact to 1 percent of it
_REFINEMENTS = 6  # of the inverse filter; each one at least halves its error


class CrosstalkNoise(NoiseModel):
    """Noise of independent pixels, filtered so that neighbours are slightly correlated.

    The electronics of a scanning detector smear the pulse of a photon over its pixel and the next, and a
    camera's readout may sharpen it instead. A network that learns one part of the light from the other would
    find some of the second part's noise in the pixels beside, if the parts were split as if pixels were
    independent.

    Args:
        white: the noise of single pixels, as seen in the images.
        along_y: correlation of neighbouring pixels along y, between -0.2 and 0.2.
        along_x: the same along x.
    """

    def __init__(self, white: GaussianNoise | PhotonNoise, along_y: float, along_x: float) -> None:
        super().__init__()
        if max(abs(along_y), abs(along_x)) > LARGEST:
            raise ValueError(
                f"CrosstalkNoise: got correlations {along_y}, {along_x}; takes -{LARGEST} to {LARGEST}; "
                "fit a CorrelatedNoise to stronger ones"
            )
        self.white, self.neighbours = white, (along_y, along_x)
        self.isotropic, self.mirrors = along_y == along_x, ("y", "x", "yx")
        self.gain = white.gain
        self._weights = [_weight(each) for each in self.neighbours]
        before = 1 / math.prod((1 - 2 * k) ** 2 + 2 * k**2 for k in self._weights)  # it averages
        self.before = _scaled(white, before)
        self.step = getattr(white, "step", None)

    def variance(self, signal: Tensor) -> Tensor:
        return self.white.variance(signal)

    def log_likelihood(self, noisy: Tensor, signal: Tensor) -> Tensor:
        """That of each pixel by itself."""
        return self.white.log_likelihood(noisy, signal)

    def sample(self, signal: Tensor) -> Tensor:
        noisy = signal + self._filtered(self.before.sample(signal) - signal)
        return noisy if self.step is None else (noisy / self.step).round() * self.step

    def split(self, noisy: Tensor, share: float) -> tuple[Tensor, Tensor]:
        """Splits the independent noise before the filter, see `PhotonNoise.split`, and filters both parts."""
        if self.step is not None:  # from integer values a network could infer the other part
            noisy = noisy + self.step * (torch.rand_like(noisy) - 0.5)
        first, second = self.before.split(self._unfiltered(noisy), share)
        return self._filtered(first), self._filtered(second)

    def _filtered(self, images: Tensor) -> Tensor:
        """Moves the fraction k of each pixel into the next one on either side."""
        flat = images.float().flatten(0, 1).unsqueeze(1)
        for k, shape, pad in zip(self._weights, ((3, 1), (1, 3)), ((0, 0, 1, 1), (1, 1, 0, 0)), strict=True):
            kernel = flat.new_tensor([k, 1 - 2 * k, k]).view(1, 1, *shape)
            with torch.autocast(images.device.type, enabled=False):  # bf16 would round raw counts
                flat = F.conv2d(F.pad(flat, pad, "replicate"), kernel)
        return flat.view_as(images)

    def _unfiltered(self, images: Tensor) -> Tensor:
        """The images that `_filtered` turns into these."""
        result = images
        for _ in range(_REFINEMENTS):
            result = result + images - self._filtered(result)
        return result


def _weight(correlation: float) -> float:
    """k for which white noise filtered by (k, 1 - 2k, k) has this correlation between neighbours."""
    return (2 * correlation + 1 - math.sqrt(1 - 2 * correlation**2)) / (6 * correlation + 4)


def _scaled(white: GaussianNoise | PhotonNoise, factor: float) -> GaussianNoise | PhotonNoise:
    """The same noise with `factor` times its variance, without rounding."""
    if isinstance(white, PhotonNoise):
        return PhotonNoise(
            factor * white.gain, factor * white.offset, math.sqrt(factor) * white.read_noise, white.shape
        )
    if white.std is None:
        raise ValueError("CrosstalkNoise: GaussianNoise must have a constant std; fit a PhotonNoise")
    return GaussianNoise(math.sqrt(factor) * white.std)
