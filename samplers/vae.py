"""What the VAE samplers share: standardization, the negative ELBO, and draws that encode once."""

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

CORRELATED = (
    "{} takes each pixel's noise for independent, so that most of it stays in the draws; use the sampler "
    "StabilizedSampler, StructuredNoiseVAE with a fitted noise model (distill noise-model fit --kind "
    "autoregressive), or JointNoiseVAE for lines along x or y"
)
DRAW_PIXELS = 2**17  # pixels that are decoded at once: bounds the memory of many draws


class VAE(Protocol):
    """A network in standardized units."""

    def encode(self, x: Tensor, /) -> list[Tensor]:
        """(B, C, H, W) -> feature maps."""
        ...

    def decode(self, features: list[Tensor], height: int, width: int, /) -> tuple[Tensor, Tensor]:
        """One draw -> signal (B, C, height, width), and its KL (B, ...) in nats."""
        ...


class VAESampler(PosteriorSampler):
    """A VAE whose decoder predicts the signal, and a fixed noise model p(noisy | signal).

    in_channels: what the encoder sees: the channels of the plane, then those of its context, if it has one.
    The likelihood and the draws are of the plane alone.
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
    ) -> None:
        super().__init__()
        is_file = isinstance(noise_model, str | PathLike)
        # registered even if None: what replaces it later comes before the network in state_dict
        self.register_module("noise_model", load_noise_model(noise_model) if is_file else noise_model)
        if self.noise_model is not None and type(self).isotropic:
            self.isotropic, self.mirrors = self.noise_model.isotropic, self.noise_model.mirrors
        self.register_module("light", None)  # what `prepare` finds, where it estimates noise
        self.channels, self.kl_warmup = channels, kl_warmup
        self.in_channels = channels if in_channels is None else in_channels
        if self.in_channels < 1 or self.in_channels % channels:
            raise ValueError(f"in_channels: got {in_channels}, must be a multiple of channels={channels}")
        if self.in_channels != channels:
            self.declare(channels)
        # A tensor, so that a resumed run continues from here; a whole number, which several processes add up.
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.register_buffer("mean", torch.zeros(channels, 1, 1))
        self.register_buffer("std", torch.ones(channels, 1, 1))

    @abstractmethod
    def kl_cost(self, kl: Tensor) -> Tensor:
        """The KL that `vae.decode` returned -> nats per image that the loss counts, a scalar."""

    def warmed_up(self, kl_cost: Tensor) -> Tensor:
        """The KL's weight rises from 0 to 1 over `kl_warmup` training steps, so that the latents
        are not given up before the decoder can use them (posterior collapse)."""
        if not self.training or not self.kl_warmup:
            return kl_cost
        self.steps += 1
        return kl_cost * (self.steps / self.kl_warmup).clamp(max=1)

    def log_kl(self, kl: Tensor) -> None:
        """Nats per image of each level, kl_1 the finest, before free bits and warm-up."""
        levels = kl.detach().reshape(len(kl), -1).mean(dim=0)
        if self.training:  # a validation in between must not count
            self.logged = {f"kl_{i}": nats for i, nats in enumerate(levels, start=1)}

    def prepare(self, noisy: Tensor, mean: Tensor, std: Tensor) -> None:
        if len(mean) != self.in_channels:
            advice = "one channel at a time, or with a context HDN or DivNoising and in_channels"
            raise ValueError(
                f"{type(self).__name__}: got images of {len(mean)} channels, made for "
                f"{self.in_channels}; pass channels={len(mean)}, or {advice}"
            )
        self.mean.copy_(mean[: self.channels])
        self.std.copy_(std[: self.channels])
        noisy = self.plane(noisy)
        warn_of_unlike_channels(noisy, self.noise_model)
        if self.noise_model is None:
            self.noise_model = estimate_noise(noisy).to(self.mean.device)
            self.light = LightSplit.fit(noisy, advice=CORRELATED.format(type(self).__name__))

    def plane(self, noisy: Tensor) -> Tensor:
        """Of (B, in_channels, *S) the first `channels`: those of the plane itself, without its context."""
        return noisy if self.in_channels == self.channels else noisy[:, : self.channels]

    def encode(self, noisy: Tensor) -> list[Tensor]:
        """Raw counts of all planes -> the network's feature maps."""
        if self.in_channels == self.channels:
            return self.vae.encode((noisy - self.mean) / self.std)
        if noisy.shape[1] != self.in_channels:
            raise ValueError(
                f"{type(self).__name__}: got {noisy.shape[1]} channels, sees {self.in_channels} with those "
                "of its context; pass the run that it is of, or such images"
            )
        planes = noisy.unflatten(1, (-1, self.channels))
        return self.vae.encode(((planes - self.mean) / self.std).flatten(1, 2))

    def training_step(self, noisy: Tensor) -> tuple[Tensor, Tensor]:
        """Negative ELBO in nats per pixel of raw counts, and the draw that it was computed from."""
        features, noisy = self.encode(noisy), self.plane(noisy)
        signal, kl = self.vae.decode(features, *noisy.shape[-2:])
        signal = signal * self.std + self.mean
        if self.noise_model is None:
            raise ValueError(
                f"{type(self).__name__}: has no noise model yet; call prepare, or pass one to the constructor"
            )
        reconstruction = -self.noise_model.log_likelihood(noisy, signal).mean()
        self.log_kl(kl)
        return reconstruction + self.warmed_up(self.kl_cost(kl)) / noisy[0].numel(), signal

    def draws(self, noisy: Tensor, n: int) -> Iterator[Tensor]:
        """Encodes once; decodes several draws at a time, as many as DRAW_PIXELS allows."""
        with evaluating(self):
            features = self.encode(noisy)
        at_once = max(1, min(n, DRAW_PIXELS // noisy[:, 0].numel()))
        for start in range(0, n, at_once):
            k = min(at_once, n - start)
            with evaluating(self):  # not around the yield, where it would leak to the caller
                repeated = [feature.repeat(k, 1, 1, 1) for feature in features]
                signal, _ = self.vae.decode(repeated, *noisy.shape[-2:])
                signal = signal * self.std + self.mean
            yield from signal.unflatten(0, (k, len(noisy)))

    def sample(self, noisy: Tensor, n: int = 1) -> Tensor:
        return torch.stack(list(self.draws(noisy, n)))
