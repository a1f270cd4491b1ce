"""A student that sees every camera's noise with standard deviation 1: one set of weights starts them all."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from students.light import LightUNet
from students.padding import crop, pad_to_multiple
from students.precision import in_float32

WEIGHTS = Path(__file__).with_name("stabilized.safetensors")
CORRELATED = Path(__file__).with_name("correlated.safetensors")
_DARK_SLOPE = (3 / 8) ** -0.5
FLAT = 1000.0  # of the darkest pixel where noise is Gaussian and knows no zero


class StabilizedUNet(nn.Module):
    """(B, C, H, W) -> (B, out_channels, H, W), both standardized; H and W multiples of `multiple`.

    Noise of variance gain * signal + offset becomes noise of standard deviation 1 by the generalised
    Anscombe transform (Anscombe 1948; Makitalo & Foi 2013), z = 2 sqrt(y + 3/8) of the photons
    y = counts / gain + offset / gain^2. A LightUNet predicts what to add to z, and z^2 / 4 - 3/8 is
    trained to be the signal's posterior mean, so that the inverse needs no correction. Each channel is
    denoised by itself. `load_pretrained` gives weights that have seen synthetic images of many kinds;
    they denoise before any training (`benchmarks/pretrain.py` made them).

    out_channels: a multiple of in_channels; the first in_channels are the image itself, what is left
    are further maps of the loss, which start at -3 (a small spread, through a softplus).
    """

    gain: Tensor
    offset: Tensor
    mean: Tensor
    std: Tensor
    level: Tensor

    def __init__(self, in_channels: int = 1, out_channels: int = 1, width: int = 40) -> None:
        super().__init__()
        if in_channels < 1 or out_channels < 1 or out_channels % in_channels:
            raise ValueError(
                f"StabilizedUNet: got {in_channels=}, {out_channels=}; out_channels must be a multiple of "
                "in_channels, one for each output of the loss"
            )
        self.in_channels, self.out_channels, self.width = in_channels, out_channels, width
        self.correlated = False
        self.network = LightUNet(2, out_channels // in_channels, width)
        self.multiple = self.network.multiple
        weight, bias = self.network.head.parameters()
        with torch.no_grad():
            weight.mul_(0.1)  # starts near the identity
            bias[self.network.unshuffle**2 :] = -3.0
        for name, value in {"gain": 1.0, "offset": 0.0, "mean": 0.0, "std": 1.0, "level": 0.0}.items():
            self.register_buffer(name, torch.full((in_channels, 1, 1), value))

    def prepare(
        self, noisy: Tensor, mean: Tensor, std: Tensor, gain: Tensor, offset: Tensor, correlated: bool = False
    ) -> None:
        """Called once before training or prediction: some frames (N, C, H, W) in raw counts, the data's
        mean and std, and the noise line, each (C, 1, 1). A gain of 0 is Gaussian noise. correlated: whether
        the noise of neighbouring pixels is; it decides which weights `load_pretrained` loads."""
        self.correlated = correlated
        variance = gain * mean + offset
        # Where brightness hardly changes the noise, z would be a small difference of large numbers.
        self.gain.copy_(torch.where(gain * std > 1e-3 * variance, gain, 0 * gain))
        self.offset.copy_(torch.where(self.gain > 0, offset, variance))
        self.mean.copy_(mean)
        self.std.copy_(std)
        self.level.copy_(self._stabilize(noisy.to(mean), 1.0).mean((0, 2, 3))[:, None, None])

    def load_pretrained(self) -> None:
        """The weights that ship with the package, after `prepare`. Further maps than the image keep their own
        start."""
        if self.width != StabilizedUNet().width:
            raise ValueError(
                f"StabilizedUNet: the shipped weights have width 40, got {self.width}; pass init none to "
                "start from random ones"
            )
        weights = {
            key: value.float() for key, value in load_file(CORRELATED if self.correlated else WEIGHTS).items()
        }
        own = self.network.state_dict()
        for key, value in weights.items():
            own[key][: len(value)] = value  # of the head, the image's channels alone
        self.network.load_state_dict(own)

    def forward(self, x: Tensor, share: float = 1.0) -> Tensor:
        """share: of the light that the image was made with (`LightSplit`): its noise is stronger."""
        z, level = self.stabilize(x.float() * self.std + self.mean, share)
        maps = self.maps(z, level)
        image = (self.counts(z + maps[:, :, 0], share) - self.mean) / self.std
        return torch.cat([image, maps[:, :, 1:].transpose(1, 2).flatten(1, 2)], dim=1)

    def denoise(self, counts: Tensor) -> Tensor:
        """Raw counts (B, C, H, W) of any size -> the posterior mean in raw counts."""
        z, level = self.stabilize(pad_to_multiple(counts.float(), self.multiple))
        return crop(self.counts(z + self.maps(z, level)[:, :, 0]), counts.shape[2:])

    def stabilize(self, counts: Tensor, share: float = 1.0) -> tuple[Tensor, Tensor]:
        """Raw counts (B, C, H, W) -> z, whose noise has std 1, and the data's mean of it (C, 1, 1)."""
        level = torch.where(self.gain > 0, self.level, self.level - FLAT) * share**0.5
        return self._stabilize(counts, share), torch.where(self.gain > 0, level, level + FLAT)

    def maps(self, z: Tensor, level: Tensor) -> Tensor:
        """Stabilized images (B, C, H, W) and the mean of each -> (B, C, maps, H, W): what to add to them, and
        the further maps."""
        seen = torch.stack([(z - level) / 4, z.clamp(max=16) / 8], dim=2).flatten(0, 1)  # (B * C, 2, H, W)
        seen = seen.contiguous(memory_format=torch.channels_last)
        features = in_float32(self.network.stem, seen)  # z has more digits than bf16
        features = self.network.body(features)
        return in_float32(self.network.head, features).unflatten(0, (-1, self.in_channels))

    def _stabilize(self, counts: Tensor, share: float) -> Tensor:
        gain, offset = self.gain.clamp(min=1e-12) / share, self.offset / share
        y = counts / gain + offset / gain**2
        z = 2 * (y.clamp(min=0) + 3 / 8).sqrt() + y.clamp(max=0) * _DARK_SLOPE  # read noise goes on below 0
        return torch.where(self.gain > 0, z, FLAT + (counts - self.mean) / offset.clamp(min=1e-12).sqrt())

    def counts(self, z: Tensor, share: float = 1.0) -> Tensor:
        """z -> raw counts."""
        gain, offset = self.gain.clamp(min=1e-12) / share, self.offset / share
        y = z.clamp(min=0) ** 2 / 4 - 3 / 8
        return torch.where(
            self.gain > 0, gain * y - offset / gain, (z - FLAT) * offset.clamp(min=1e-12).sqrt() + self.mean
        )
