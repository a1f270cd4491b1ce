"""A posterior sampler that draws in one pass, trained by a proper score in place of a likelihood bound."""

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
from samplers.noise.split import LightSplit, can_be_split
from samplers.vae import DRAW_PIXELS
from students import LightUNet, StabilizedUNet
from students.noise_conditioned import smooth_noise
from students.padding import crop, pad_to_multiple
from students.precision import in_float32
from students.unet import conv

WEIGHTS = Path(__file__).with_name("stabilized.safetensors")
CORRELATED = Path(__file__).with_name("correlated.safetensors")
SPREAD_WIDTH = 32
SCALES = (1,) * 8 + (2,) * 4 + (4,) * 2 + (8,) * 2  # random numbers are correlated over as many pairs of px


class StabilizedSampler(PosteriorSampler):
    """Two networks: one predicts the posterior mean, the other adds a random deviation that makes a draw.

    Both see images whose noise has standard deviation 1 (`StabilizedUNet`), so that one set of weights is a
    start for every camera (`load_pretrained`; made by `benchmarks/pretrain.py`). The mean network is trained
    further on noisy images alone, by predicting one part of each image's light from the other
    (`LightSplit`). The shipped spread network stays fixed, because in dark regions the posterior's spread is
    smaller than the error of any estimate of the camera's noise. Both networks were trained on synthetic
    images, the spread network by the energy score (Gneiting & Raftery 2007), which is least for draws from
    the posterior. Each channel is denoised by itself. Noise may be correlated between pixels in the same way
    everywhere; then other shipped weights are loaded, which are told the correlation. If a model of such
    noise is passed, the mean network takes the weights of the student during training (`follow`).

    Args:
        noise_model: GaussianNoise, PhotonNoise or CorrelatedNoise, a ChannelNoise of these for several
            channels, or the .npz file of one. Default: estimated from the noisy training images.
        channels: number of channels of the images.
        width: channels of the finest level of the mean network; the shipped weights have 40.
        spread_width: channels of the finest level of the spread network; the shipped weights have 32.
    """

    files = ("noise_model",)
    noise_model: NoiseModel | None
    shipped: Tensor  # whether the spread network has the shipped weights
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
        """False for shipped weights and correlated noise: they would learn noise that its model misses."""
        return super().trainable and not (self._correlated and bool(self.shipped))

    @property
    def _correlated(self) -> bool:
        """Whether the noise is correlated. A file does not store `light`, but the correlation."""
        return self.light.correlated if self.light is not None else bool(self.mean.correlation.any())

    @property
    def isotropic(self) -> bool:
        return self.light.noise.isotropic if self.light is not None else not self._correlated

    @property
    def mirrors(self) -> Sequence[str]:
        if self.light is not None:
            return self.light.noise.mirrors
        return ("yx",) if self._correlated else ()  # a half turn keeps every correlation

    def load_pretrained(self) -> None:
        """Loads the weights that ship with the package, which were trained on synthetic images of many kinds.

        Call `prepare` before, which finds out whether the noise is correlated.
        """
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

    def follow(self, student: nn.Module) -> None:
        """Takes the weights of a student of the same size, which knows the images, as the mean network."""
        self.mean.load_state_dict(student.state_dict())

    def prepare(self, noisy: Tensor, mean: Tensor, std: Tensor) -> None:
        if len(mean) != self.channels:
            raise ValueError(
                f"StabilizedSampler: got images of {len(mean)} channels, made for {self.channels}; "
                f"pass channels={len(mean)}, or one channel at a time"
            )
        self.light = LightSplit.fit(noisy, self.noise_model)
        self.mean.prepare(noisy, mean, std, *self.light.line, self.light.correlation)

    def answer(self, noisy: Tensor, share: float = 1.0) -> tuple[Tensor, Tensor]:
        """Raw counts (B, C, H, W) -> `answer_z` of the stabilized image, padded to a multiple of pixels."""
        padded = pad_to_multiple(noisy.float(), self.mean.multiple)
        return self.answer_z(*self.mean.stabilize(padded, share))

    def answer_z(self, z: Tensor, level: Tensor, correlation: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Stabilized z (B, C, H, W) -> posterior mean in z, and the input of `spread` (B, 3 * C, H, W)."""
        added = self.mean.maps(z, level, correlation)[:, :, 0]
        # Detached, because the mean network learns from its own error alone.
        return z + added, torch.cat([(z - level) / 4, z.clamp(max=16) / 8, added.detach()], dim=1)

    def _draw(self, centre: Tensor, features: Tensor, n: int) -> Tensor:
        """n draws of each image, (n * B, C, H, W) in z."""
        added = self.spread(features.repeat(n, 1, 1, 1)).unflatten(0, (-1, self.channels))
        return centre.repeat(n, 1, 1, 1) + added.squeeze(2)

    def _counts(self, z: Tensor, like: Tensor, share: float = 1.0) -> Tensor:
        return crop(self.mean.counts(z, share), like.shape[2:])

    def draws(self, noisy: Tensor, n: int) -> Iterator[Tensor]:
        """Runs the mean network once, then the small one for as many draws at once as DRAW_PIXELS allows."""
        with evaluating(self):
            centre, inputs = self.answer(noisy)
            features = self.spread.look(inputs)
        at_once = max(1, min(n, DRAW_PIXELS // noisy[:, 0].numel()))
        for start in range(0, n, at_once):
            k = min(at_once, n - start)
            with evaluating(self):  # not around the yield, where it would leak to the caller
                signal = self._counts(self._draw(centre, features, k), noisy)
            yield from signal.unflatten(0, (k, len(noisy)))

    def sample(self, noisy: Tensor, n: int = 1) -> Tensor:
        return torch.stack(list(self.draws(noisy, n)))

    def training_step(self, noisy: Tensor) -> tuple[Tensor, Tensor]:
        """`training_loss`, and a draw from all of the light."""
        return self.training_loss(noisy), self.sample(noisy)[0]

    def training_loss(self, noisy: Tensor) -> Tensor:
        """The error of the mean network on the part of the light that it does not see.

        A spread network without shipped weights adds the energy score of draws, with noise like that of this
        part.
        """
        if self.light is None:
            raise ValueError("StabilizedSampler: has no noise model yet; call prepare")
        share = self.light.random_share()
        first, second = self.light(noisy, share)
        centre, inputs = self.answer(first, share)
        loss = self.light.error(self._counts(centre, noisy, share), second, noisy, share)
        if not self.shipped:
            n, rest = self.score.samples, 1 - share
            signal = self._counts(self._draw(centre.detach(), self.spread.look(inputs), n), noisy, share)
            fixed = signal.detach()
            noise = self.light(self.light.observe(fixed), share)[1] - fixed
            draws, target = (self.mean.stabilize(v, rest)[0] for v in (signal + noise, second))
            draws = draws.unflatten(0, (n, -1)).transpose(0, 1).flatten(1, 2)
            loss = loss + self.score(draws, target[None])
        return loss


class Spread(nn.Module):
    """The random deviation of a draw from the posterior mean, in z.

    Random numbers at half the resolution are scaled by the uncertainty that a U-Net predicts from the image,
    and are then adapted to the image. The U-Net (`look`) runs once for each image; a draw takes four
    convolutions.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.context = LightUNet(3, 1, width)
        self.scale = nn.Conv2d(width, len(SCALES), 1)
        self.mix = conv(len(SCALES), width)
        self.fit = nn.Sequential(conv(2 * width, width), nn.ReLU(inplace=True), conv(width, width))
        starts = [(self.scale, 0.1, -1.0), (self.mix, 1.0, 0.0), (self.fit[2], 0.1, 0.0)]
        starts.append((self.context.head[0], 0.3, 0.0))
        with torch.no_grad():  # starts as weak noise, alike everywhere, because products diverge easily
            for layer, factor, constant in starts:
                weight, bias = layer.parameters()
                weight.mul_(factor)
                bias.fill_(constant)

    def look(self, inputs: Tensor) -> Tensor:
        """(B, 3 * C, H, W) -> features (B * C, width, H / 2, W / 2), of each channel by itself."""
        each = inputs.unflatten(1, (3, -1)).transpose(1, 2).flatten(0, 1)
        each = each.contiguous(memory_format=torch.channels_last)
        return self.context.body(in_float32(self.context.stem, each))  # bf16 would round z

    def forward(self, features: Tensor) -> Tensor:
        """Features of `look` -> a random deviation (B * C, 1, H, W), another one on every call."""
        numbers = torch.cat([smooth_noise(features[:, :1], scale) for scale in SCALES], dim=1)
        scaled = (numbers * 2 * self.scale(features).sigmoid()).contiguous(memory_format=torch.channels_last)
        mixed = self.mix(scaled)
        mixed = mixed + self.fit(torch.cat([mixed, features], dim=1))
        return in_float32(self.context.head, mixed)
