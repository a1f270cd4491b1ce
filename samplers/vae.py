"""The common part of VAE samplers: standardization, the negative ELBO, and draws that encode once."""

from abc import abstractmethod
from collections.abc import Iterator
from os import PathLike
from typing import Protocol

import torch
from torch import Tensor

from samplers.base import PosteriorSampler, evaluating
from samplers.noise import NoiseModel, load_noise_model
from samplers.noise.channels import estimate_noise, warn_of_unlike_channels
from samplers.noise.split import LightSplit
from students.dimensions import as_planes, check_dims, per_channel

CORRELATED = (
    "{} assumes that the noise of each pixel is independent, so most of it stays in the draws; use the "
    "sampler StabilizedSampler, StructuredNoiseVAE with a fitted noise model (distill noise-model fit --kind "
    "autoregressive), or JointNoiseVAE for lines along x or y"
)
DRAW_PIXELS = 2**17  # pixels that are decoded at once, which bounds the memory of many draws


class VAE(Protocol):
    """A network in standardized units."""

    def encode(self, x: Tensor, /) -> list[Tensor]:
        """Encodes standardized images (B, C, *S) -> feature maps."""
        ...

    def decode(self, features: list[Tensor], /, *size: int) -> tuple[Tensor, Tensor]:
        """Draws latents once -> signal (B, C, *size), and its KL (B, ...) in nats."""
        ...


class VAESampler(PosteriorSampler):
    """A VAE whose decoder predicts the signal, with a fixed noise model p(noisy | signal).

    Args:
        noise_model: p(noisy | signal), or the .npz file of one. None: estimated from the training images.
        channels: number of channels of the image.
        kl_warmup: training steps over which the weight of the KL rises from 0 to 1.
        in_channels: number of channels of the model: those of the plane, followed by those of neighbouring
            planes. It decodes all of them and returns the plane, a draw from p(signal | all planes). With a
            likelihood of the plane alone, the encoder that is best in the ELBO would ignore the others.
            Default: `channels`.
        dims: 2 for images, 3 for volumes.
    """

    files = ("noise_model",)
    vae: VAE
    noise_model: NoiseModel | None
    light: LightSplit | None
    steps: Tensor
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        noise_model: NoiseModel | str | None,
        channels: int,
        kl_warmup: int,
        in_channels: int | None = None,
        dims: int = 2,
    ) -> None:
        super().__init__()
        check_dims(type(self).__name__, dims)
        self.dims = dims
        is_file = isinstance(noise_model, str | PathLike)
        # Registered even if None, so that a later model comes before the network in state_dict.
        self.register_module("noise_model", load_noise_model(noise_model) if is_file else noise_model)
        if self.noise_model is not None and type(self).isotropic:
            self.isotropic, self.mirrors = self.noise_model.isotropic, self.noise_model.mirrors
        self.register_module("light", None)  # set by `prepare` if it estimates the noise
        self.channels, self.kl_warmup = channels, kl_warmup
        self.in_channels = channels if in_channels is None else in_channels
        if self.in_channels < 1 or self.in_channels % channels:
            raise ValueError(f"in_channels: got {in_channels}, must be a multiple of channels={channels}")
        if self.in_channels != channels:
            self.declare(channels)
        # A tensor, so that a resumed run continues from here; whole numbers, because processes sum them.
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.register_buffer("mean", torch.zeros(channels, *[1] * dims))
        self.register_buffer("std", torch.ones(channels, *[1] * dims))

    @abstractmethod
    def kl_cost(self, kl: Tensor) -> Tensor:
        """KL of `vae.decode` -> the nats per image that count in the loss, a scalar."""

    def warmed_up(self, kl_cost: Tensor) -> Tensor:
        """Weights the KL by a factor that rises from 0 to 1 over `kl_warmup` training steps.

        Without it the encoder may abandon latents before the decoder can use them (posterior collapse).
        """
        if not self.training or not self.kl_warmup:
            return kl_cost
        self.steps += 1
        return kl_cost * (self.steps / self.passes_per_step / self.kl_warmup).clamp(max=1)

    def log_kl(self, kl: Tensor) -> None:
        """Logs the nats per image of each level, kl_1 the finest, before free bits and warm-up."""
        levels = kl.detach().reshape(len(kl), -1).mean(dim=0)
        if self.training:  # the log is of training steps, not of a validation between them
            self.logged = {f"kl_{i}": nats for i, nats in enumerate(levels, start=1)}

    def prepare(self, noisy: Tensor, mean: Tensor, std: Tensor) -> None:
        if len(mean) != self.in_channels:
            advice = "one channel at a time, or with a context HDN or DivNoising and in_channels"
            raise ValueError(
                f"{type(self).__name__}: got images of {len(mean)} channels, made for "
                f"{self.in_channels}; pass channels={len(mean)}, or {advice}"
            )
        self.mean.copy_(per_channel(mean[: self.channels], self.dims))
        self.std.copy_(per_channel(std[: self.channels], self.dims))
        noisy = as_planes(self.plane(noisy))
        warn_of_unlike_channels(noisy, self.noise_model)
        if self.noise_model is None:
            self.noise_model = estimate_noise(noisy).to(self.mean.device)
            self.light = LightSplit.fit(noisy, advice=CORRELATED.format(type(self).__name__))

    def plane(self, noisy: Tensor) -> Tensor:
        """(B, in_channels, *S) -> (B, channels, *S): the plane itself, without neighbouring planes."""
        return noisy if self.in_channels == self.channels else noisy[:, : self.channels]

    def encode(self, noisy: Tensor) -> list[Tensor]:
        """Raw counts (B, in_channels, *S) -> the network's feature maps."""
        if noisy.shape[1] != self.in_channels:
            raise ValueError(
                f"{type(self).__name__}: got {noisy.shape[1]} channels, sees {self.in_channels} with those "
                "of its context; pass the run of this sampler, or images with as many channels"
            )
        return self.vae.encode(((self.each_plane(noisy) - self.mean) / self.std).view_as(noisy))

    def each_plane(self, images: Tensor) -> Tensor:
        """(B, in_channels, *S) -> (B * planes, channels, *S): the plane and its neighbours, one by one."""
        return images.unflatten(1, (-1, self.channels)).flatten(0, 1)

    def raw(self, signal: Tensor) -> Tensor:
        """The network's standardized signal (B, in_channels, *S) -> raw counts."""
        return (self.each_plane(signal) * self.std + self.mean).view_as(signal)

    def training_step(self, noisy: Tensor) -> tuple[Tensor, Tensor]:
        """(negative ELBO in nats per pixel of raw counts, the draw (B, C, *S) of that pass)."""
        signal, kl = self.vae.decode(self.encode(noisy), *noisy.shape[2:])
        signal = self.raw(signal)
        if self.noise_model is None:
            raise ValueError(
                f"{type(self).__name__}: has no noise model yet; call prepare, or pass one to the constructor"
            )
        # The encoder that is best in the ELBO is p(latents | what has a likelihood): all planes.
        planes, signals = self.each_plane(noisy), self.each_plane(signal)
        reconstruction = -self.noise_model.log_likelihood(as_planes(planes), as_planes(signals)).mean()
        self.log_kl(kl)
        return reconstruction + self.warmed_up(self.kl_cost(kl)) / noisy[0].numel(), self.plane(signal)

    def draws(self, noisy: Tensor, n: int) -> Iterator[Tensor]:
        """Encodes once, and decodes as many draws at a time as DRAW_PIXELS allows."""
        with evaluating(self):
            features = self.encode(noisy)
        at_once = max(1, min(n, DRAW_PIXELS // noisy[:, 0].numel()))
        for start in range(0, n, at_once):
            k = min(at_once, n - start)
            with evaluating(self):  # not around the yield, where it would leak to the caller
                repeated = [feature.repeat(k, *[1] * (feature.ndim - 1)) for feature in features]
                signal, _ = self.vae.decode(repeated, *noisy.shape[2:])
                signal = self.plane(self.raw(signal))
            yield from signal.unflatten(0, (k, len(noisy)))

    def sample(self, noisy: Tensor, n: int = 1) -> Tensor:
        return torch.stack(list(self.draws(noisy, n)))
