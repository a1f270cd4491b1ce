"""A posterior sampler that draws in one pass: a proper score in place of a likelihood, and no bound."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from losses import EnergyScore
from samplers.base import PosteriorSampler, evaluating
from samplers.noise import NoiseModel, load_noise_model
from samplers.noise.split import SHARE, LightSplit, can_be_split
from samplers.vae import DRAW_PIXELS
from students import LightUNet, StabilizedUNet
from students.noise_conditioned import smooth_noise
from students.padding import crop, pad_to_multiple
from students.precision import in_float32
from students.unet import conv

WEIGHTS = Path(__file__).with_name("stabilized.safetensors")
CORRELATED = Path(__file__).with_name("correlated.safetensors")
SPREAD_WIDTH = 32
SCALES = (1,) * 8 + (2,) * 4 + (4,) * 2 + (8,) * 2  # pairs of px over which random numbers are correlated


class StabilizedSampler(PosteriorSampler):
    """The posterior mean, and what a second network makes of random numbers where the first is unsure.

    Both see noise of standard deviation 1 (`StabilizedUNet`), so that one set of weights starts them for
    every camera (`load_pretrained`; `benchmarks/pretrain.py` made it). The mean goes on learning from noisy
    images alone: a part of each image's light predicts the rest (`LightSplit`). The shipped spread stays
    what it is: what is uncertain in the dark is less than what is known of any camera's noise. Both were
    trained to be exact on synthetic images, the spread by the energy score (Gneiting & Raftery 2007),
    which is least for draws from the posterior. Each channel is denoised by itself. Noise may be correlated
    between pixels, alike everywhere; other weights start from there.

    noise_model: GaussianNoise, PhotonNoise or CorrelatedNoise, a ChannelNoise of these for several channels,
    or the .npz file of one; None estimates it.
    """

    files = ("noise_model",)
    noise_model: NoiseModel | None
    shipped: Tensor  # whether the spread is the one in the package
    light: LightSplit | None

    def __init__(
        self,
        noise_model: NoiseModel | str | None = None,
        *,
        channels: int = 1,
        width: int = 40,
        spread_width: int = SPREAD_WIDTH,
    ) -> None:
        super().__init__()
        model = load_noise_model(noise_model) if isinstance(noise_model, str | PathLike) else noise_model
        if model is not None and not can_be_split(model):
            raise ValueError(
                f"StabilizedSampler: got a {type(model).__name__}; takes a GaussianNoise, PhotonNoise or "
                "CorrelatedNoise, which can be split, or a ChannelNoise of these; use the sampler HDN, or "
                "leave the noise model to be estimated"
            )
        self.register_module("noise_model", model)
        self.channels, self.width, self.spread_width = channels, width, spread_width
        self.mean = StabilizedUNet(channels, channels, width)
        self.spread = Spread(spread_width)
        self.score = EnergyScore(samples=4)
        self.register_buffer("shipped", torch.zeros((), dtype=torch.bool))
        self.register_module("light", None)  # `prepare` fits it to the images

    @property
    def trainable(self) -> bool:
        """Not the shipped weights where noise is correlated: they would learn what its model misses."""
        correlated = self.light is not None and self.light.correlated
        return super().trainable and not (correlated and bool(self.shipped))

    @property
    def isotropic(self) -> bool:
        return self.light is None or self.light.noise.isotropic

    @property
    def mirrors(self) -> Sequence[str]:
        return () if self.light is None else self.light.noise.mirrors

    def load_pretrained(self) -> None:
        """The weights that ship with the package, trained on synthetic images of many kinds; after `prepare`,
        which tells whether noise is correlated."""
        if self.spread_width != SPREAD_WIDTH:
            raise ValueError(
                f"StabilizedSampler: the shipped spread_width is {SPREAD_WIDTH}, got {self.spread_width}; "
                "pass init none to start from random weights"
            )
        self.mean.load_pretrained()
        self.spread.load_state_dict(
            {
                key: value.float()
                for key, value in load_file(CORRELATED if self.mean.correlated else WEIGHTS).items()
            }
        )
        self.shipped.fill_(True)

    def prepare(self, noisy: Tensor, mean: Tensor, std: Tensor) -> None:
        if len(mean) != self.channels:
            raise ValueError(
                f"StabilizedSampler: got images of {len(mean)} channels, made for {self.channels}; "
                f"pass channels={len(mean)}, or one channel at a time"
            )
        self.light = LightSplit.fit(noisy, self.noise_model)
        self.mean.prepare(noisy, mean, std, *self.light.line, self.light.correlated)

    def answer(self, noisy: Tensor, share: float = 1.0) -> tuple[Tensor, Tensor]:
        """Raw counts (B, C, H, W) -> `answer_z` of them, at a multiple of pixels."""
        padded = pad_to_multiple(noisy.float(), self.mean.multiple)
        return self.answer_z(*self.mean.stabilize(padded, share))

    def answer_z(self, z: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
        """The posterior mean in z, (B, C, H, W), and what `spread` sees, (B, 3 * C, H, W)."""
        added = self.mean.maps(z, level)[:, :, 0]
        # The mean learns from its own error.
        return z + added, torch.cat([(z - level) / 4, z.clamp(max=16) / 8, added.detach()], dim=1)

    def _draw(self, centre: Tensor, features: Tensor, n: int) -> Tensor:
        """(n * B, C, H, W), n draws of each image in z."""
        added = self.spread(features.repeat(n, 1, 1, 1)).unflatten(0, (-1, self.channels))
        return centre.repeat(n, 1, 1, 1) + added.squeeze(2)

    def _counts(self, z: Tensor, like: Tensor, share: float = 1.0) -> Tensor:
        return crop(self.mean.counts(z, share), like.shape[2:])

    def draws(self, noisy: Tensor, n: int) -> Iterator[Tensor]:
        """One pass of the mean network; several of the small one at a time, as many as DRAW_PIXELS allows."""
        with evaluating(self):
            centre, seen = self.answer(noisy)
            features = self.spread.look(seen)
        at_once = max(1, min(n, DRAW_PIXELS // noisy[:, 0].numel()))
        for start in range(0, n, at_once):
            k = min(at_once, n - start)
            with evaluating(self):  # not around the yield, where it would leak to the caller
                signal = self._counts(self._draw(centre, features, k), noisy)
            yield from signal.unflatten(0, (k, len(noisy)))

    def sample(self, noisy: Tensor, n: int = 1) -> Tensor:
        return torch.stack(list(self.draws(noisy, n)))

    def training_step(self, noisy: Tensor) -> tuple[Tensor, Tensor]:
        """The mean's error on a part of the light that it has not seen, and a draw given all of it. A spread
        without shipped weights learns by the energy score of draws, observed as the unseen part is."""
        if self.light is None:
            raise ValueError("StabilizedSampler: has no noise model yet; call prepare")
        first, second = self.light(noisy)
        centre, seen = self.answer(first, SHARE)
        loss = self.light.error(self._counts(centre, noisy, SHARE), second, noisy)
        if not self.shipped:
            n, rest = self.score.samples, 1 - SHARE
            signal = self._counts(self._draw(centre.detach(), self.spread.look(seen), n), noisy, SHARE)
            known = signal.detach()
            noise = self.light(self.light.observe(known))[1] - known
            observed, unseen = (self.mean.stabilize(v, rest)[0] for v in (signal + noise, second))
            observed = observed.unflatten(0, (n, -1)).transpose(0, 1).flatten(1, 2)
            loss = loss + self.score(observed, unseen[None])
        return loss, self.sample(noisy)[0]


class Spread(nn.Module):
    """What a draw adds to the mean in z: random numbers at half the resolution, scaled by what a U-Net finds
    uncertain in the image, and then made to fit it.

    The U-Net (`look`) runs once for each image; a draw is four convolutions.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.context = LightUNet(3, 1, width)
        self.scale = nn.Conv2d(width, len(SCALES), 1)
        self.mix = conv(len(SCALES), width)
        self.fit = nn.Sequential(conv(2 * width, width), nn.ReLU(inplace=True), conv(width, width))
        starts = [(self.scale, 0.1, -1.0), (self.mix, 1.0, 0.0), (self.fit[2], 0.1, 0.0)]
        starts.append((self.context.head[0], 0.3, 0.0))
        with torch.no_grad():  # as a little noise, the same everywhere: a product diverges easily
            for layer, factor, constant in starts:
                weight, bias = layer.parameters()
                weight.mul_(factor)
                bias.fill_(constant)

    def look(self, seen: Tensor) -> Tensor:
        """(B, 3 * C, H, W) -> features (B * C, width, H / 2, W / 2): each channel by itself."""
        each = seen.unflatten(1, (3, -1)).transpose(1, 2).flatten(0, 1)
        each = each.contiguous(memory_format=torch.channels_last)
        return self.context.body(in_float32(self.context.stem, each))  # z has more digits than bf16

    def forward(self, features: Tensor) -> Tensor:
        """-> (B * C, 1, H, W), another one on every call."""
        numbers = torch.cat([smooth_noise(features[:, :1], scale) for scale in SCALES], dim=1)
        scaled = (numbers * 2 * self.scale(features).sigmoid()).contiguous(memory_format=torch.channels_last)
        mixed = self.mix(scaled)
        mixed = mixed + self.fit(torch.cat([mixed, features], dim=1))
        return in_float32(self.context.head, mixed)
