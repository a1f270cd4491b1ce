"""A student that sees noise of standard deviation 1 for every camera, so that one set of weights fits all."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from students.anscombe import anscombe
from students.hot_pixels import fill_hot_pixels
from students.light import LightUNet
from students.padding import crop, pad_to_multiple
from students.precision import in_float32

WEIGHTS = Path(__file__).with_name("stabilized.safetensors")
CORRELATED = Path(__file__).with_name("correlated.safetensors")
FLAT = 1000.0  # z of the mean for Gaussian noise, which has no natural zero
_ALONG = (1, 2, 3, 4, 6, 8, 12, 16)
# Pixel distances (y, x) at which the network is told the noise's correlation; 1 at the first if it is known.
LAGS = ((0, 0), (1, 1), (2, 2), *((0, d) for d in _ALONG), *((d, 0) for d in _ALONG))
TOLD = 64  # features of what it is told


class StabilizedUNet(nn.Module):
    """A LightUNet on variance-stabilized images: (B, C, H, W) -> (B, out_channels, H, W), both standardized.

    H and W must be multiples of `multiple`. The generalised Anscombe transform (Anscombe 1948; Makitalo & Foi
    2013), z = 2 sqrt(y + 3/8) of the photons y = counts / gain + offset / gain^2, turns noise of variance
    gain * signal + offset into noise of standard deviation 1. The network predicts a correction of z such
    that z^2 / 4 - 3/8 is the posterior mean of the signal, so the inverse needs no bias correction. Each
    channel is denoised by itself. `load_pretrained` loads weights that were trained on synthetic images of
    many kinds (`benchmarks/pretrain.py`) and denoise before any further training. Where the noise of pixels
    is correlated, the network is told how (`LAGS`).

    Args:
        in_channels: number of channels C of the image.
        out_channels: a multiple of in_channels. The first in_channels are the image, the others further maps
            of the loss, which start at -3 (a small spread, after a softplus).
        width: channels of the finest level; the shipped weights have 40.
    """

    gain: Tensor
    offset: Tensor
    mean: Tensor
    std: Tensor
    level: Tensor
    correlation: Tensor

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
        told = nn.Linear(TOLD, width, bias=False)
        # Without constants, so that independent or unknown noise changes nothing.
        self.told = nn.Sequential(nn.Linear(len(LAGS), TOLD, bias=False), nn.ReLU(inplace=True), told)
        self.multiple = self.network.multiple
        weight, bias = self.network.head.parameters()
        with torch.no_grad():
            told.weight.zero_()
            weight.mul_(0.1)  # starts near the identity
            bias[self.network.unshuffle**2 :] = -3.0
        for name, value in {"gain": 1.0, "offset": 0.0, "mean": 0.0, "std": 1.0, "level": 0.0}.items():
            self.register_buffer(name, torch.full((in_channels, 1, 1), value))
        self.register_buffer("correlation", torch.zeros(in_channels, len(LAGS)))

    def prepare(
        self,
        noisy: Tensor,
        mean: Tensor,
        std: Tensor,
        gain: Tensor,
        offset: Tensor,
        correlation: Tensor | None = None,
    ) -> None:
        """Stores the statistics of the data; called once before training or prediction.

        Args:
            noisy: some frames (N, C, H, W) in raw counts.
            mean: mean of the data (C, 1, 1) in raw counts.
            std: standard deviation of the data (C, 1, 1) in raw counts.
            gain: gain of the noise line (C, 1, 1); 0 for Gaussian noise.
            offset: offset of the noise line (C, 1, 1) in counts squared.
            correlation: correlation (C, len(LAGS)) of the noise at the distances LAGS; 0 where unknown.
                Default: none, the noise of each pixel is independent. This decides the weights that
                `load_pretrained` loads.
        """
        self.correlated = correlation is not None
        self.correlation.zero_()
        if correlation is not None:
            self.correlation.copy_(correlation)
        variance = gain * mean + offset
        # Where brightness hardly changes the noise, z would be a small difference of large numbers.
        self.gain.copy_(torch.where(gain * std > 1e-3 * variance, gain, 0 * gain))
        self.offset.copy_(torch.where(self.gain > 0, offset, variance))
        self.mean.copy_(mean)
        self.std.copy_(std)
        self.level.copy_(self._stabilize(noisy.to(mean), 1.0).mean((0, 2, 3))[:, None, None])

    def load_pretrained(self) -> None:
        """Loads the weights that ship with the package. Call `prepare` before.

        Maps of the loss beside the image keep their initial weights.
        """
        if self.width != StabilizedUNet().width:
            raise ValueError(
                f"StabilizedUNet: the shipped weights have width 40, got {self.width}; pass init none to "
                "start from random weights"
            )
        weights = load_file(CORRELATED if self.correlated else WEIGHTS)
        own = self.state_dict()
        for key, value in weights.items():
            own[key][: len(value)] = value.float()  # in the head, only the channels of the image
        self.load_state_dict(own)

    def forward(self, x: Tensor, share: float = 1.0) -> Tensor:
        """Standardized images -> standardized maps. share: fraction of the light in them (`LightSplit`)."""
        z, level = self.stabilize(x.float() * self.std + self.mean, share)
        maps = self.maps(z, level)
        image = (self.counts(z + maps[:, :, 0], share) - self.mean) / self.std
        return torch.cat([image, maps[:, :, 1:].transpose(1, 2).flatten(1, 2)], dim=1)

    def denoise(self, counts: Tensor) -> Tensor:
        """Raw counts (B, C, H, W) of any size -> the posterior mean in raw counts."""
        z, level = self.stabilize(pad_to_multiple(counts.float(), self.multiple))
        return crop(self.counts(z + self.maps(z, level)[:, :, 0]), counts.shape[2:])

    def stabilize(self, counts: Tensor, share: float = 1.0) -> tuple[Tensor, Tensor]:
        """Raw counts (B, C, H, W) -> (z, with noise of std 1; the mean of z over the data (C, 1, 1)).

        Hot and dead pixels are filled in.
        """
        level = torch.where(self.gain > 0, self.level, self.level - FLAT) * share**0.5
        z = fill_hot_pixels(self._stabilize(counts, share))
        return z, torch.where(self.gain > 0, level, level + FLAT)

    def maps(self, z: Tensor, level: Tensor, correlation: Tensor | None = None) -> Tensor:
        """Stabilized images z (B, C, H, W) and their mean -> the correction of z and further maps.

        They are the entries 0 and 1 onwards along the third axis of (B, C, maps, H, W). correlation: of each
        image, (B, C, len(LAGS)); default: that of `prepare`.
        """
        inputs = torch.stack([(z - level) / 4, z.clamp(max=16) / 8], dim=2).flatten(0, 1)  # (B * C, 2, H, W)
        inputs = inputs.contiguous(memory_format=torch.channels_last)
        # bf16 would round z
        features = in_float32(self.network.stem, inputs).unflatten(0, (-1, self.in_channels))
        told = in_float32(self.told, self.correlation if correlation is None else correlation)
        features = self.network.body((features + told[..., None, None]).flatten(0, 1))
        return in_float32(self.network.head, features).unflatten(0, (-1, self.in_channels))

    def _stabilize(self, counts: Tensor, share: float) -> Tensor:
        gain, offset = self.gain.clamp(min=1e-12) / share, self.offset / share
        flat = FLAT + (counts - self.mean) / offset.clamp(min=1e-12).sqrt()
        return torch.where(self.gain > 0, anscombe(counts, gain, offset), flat)

    def counts(self, z: Tensor, share: float = 1.0) -> Tensor:
        """Stabilized z (B, C, H, W) -> raw counts."""
        gain, offset = self.gain.clamp(min=1e-12) / share, self.offset / share
        y = z.clamp(min=0) ** 2 / 4 - 3 / 8
        return torch.where(
            self.gain > 0, gain * y - offset / gain, (z - FLAT) * offset.clamp(min=1e-12).sqrt() + self.mean
        )
