"""HDN for noise that is correlated between pixels, with a noise model that is fitted before or learned."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samplers.hdn import HDN
from samplers.ladder_vae import LadderVAE
from samplers.noise import NoiseModel
from samplers.noise.pixel_cnn import PixelCNN
from students.precision import in_float32


class StructuredNoiseVAE(HDN):
    """HDN whose likelihood is a fitted AutoregressiveNoise (Salmon & Krull, ECCV workshops 2022).

    For noise that depends on the signal, or without data to fit a noise model to, use JointNoiseVAE. As
    published, there is no dropout and there are no free bits; 0.5 to 1 free bits help if the KL stays at 0.

    Args:
        noise_model: model that was fitted to frames without signal, or to noisy - signal, or its .npz file.
            Training does not change it.
    """

    def __init__(
        self,
        noise_model: NoiseModel | str,
        *,
        channels: int = 1,
        levels: int = 6,
        latents: int = 32,
        filters: int = 64,
        blocks: int = 5,
        dropout: float = 0.0,
        patch_size: int = 64,
        free_bits: float = 0.0,
        kl_warmup: int = 0,
    ) -> None:
        if noise_model is None:  # where HDN would estimate white noise
            raise ValueError(
                "StructuredNoiseVAE: got noise_model=None, must be a fitted noise model; pass "
                "AutoregressiveNoise.fit(noise frames), or use JointNoiseVAE, which needs none"
            )
        super().__init__(
            noise_model, channels=channels, levels=levels, latents=latents, filters=filters,
            blocks=blocks, dropout=dropout, patch_size=patch_size, free_bits=free_bits, kl_warmup=kl_warmup,
        )  # fmt: skip


class JointNoiseVAE(HDN):
    """Learns signal and noise together from noisy images alone (Salmon & Krull, WACV 2025).

    For noise that is correlated along one axis only; it may depend on the signal. The ladder VAE ends in a
    code of each pixel. p(noisy | code) conditions each pixel on its code and on the pixels before it along
    that axis, so it can explain line noise, while the rest of the image has to pass through the code. A
    second decoder, trained by MSE against the noisy image, computes the draw E[noisy | code] from the code.
    Integer images are dequantised in training, as in AutoregressiveNoise.fit.

    The ladder is that of HDN, and so is free_bits = 1: with 0, as published, the noise decoder explains
    everything in some runs, and the signal ends as a constant.

    Args:
        direction: axis along which the noise is correlated, "x" along rows or "y" along columns.
        code: number of channels of the code, and of filters of both decoders.
        kernel: kernel size of the noise decoder.
        dilations: dilations of the noise decoder, which sees (kernel - 1) * (1 + sum of dilations) pixels of
            the line: 40 by default, as published.
        components: number of Gaussians of the noise decoder's mixture.
        min_scale: lower bound of a component's std, in units of the data's std.
    """

    isotropic = False  # turned lines would count as signal; the order of the rows does not matter
    vae: CodeVAE
    noise_model: PixelCNN  # p(noisy | code), where HDN has p(noisy | signal)

    def __init__(
        self,
        direction: Literal["x", "y"] = "x",
        *,
        channels: int = 1,
        levels: int = 6,
        latents: int = 32,
        filters: int = 64,
        blocks: int = 5,
        dropout: float = 0.0,
        patch_size: int = 64,
        free_bits: float = 1.0,
        kl_warmup: int = 0,
        code: int = 64,
        kernel: int = 5,
        dilations: Sequence[int] = (1, 2, 1, 2, 1, 1, 1),
        components: int = 3,
        min_scale: float = 0.01,
    ) -> None:
        if direction not in ("x", "y"):
            raise ValueError(f"JointNoiseVAE: got direction='{direction}', allowed are x, y")
        noise_model = PixelCNN(code, kernel, dilations, components, min_scale, code=code)
        super().__init__(
            None, channels=channels, levels=levels, latents=latents, filters=filters, blocks=blocks,
            dropout=dropout, patch_size=patch_size, free_bits=free_bits, kl_warmup=kl_warmup,
        )  # fmt: skip
        self.noise_model = noise_model
        self.mirrors = ("y",) if direction == "x" else ("x",)
        self.direction, self.code, self.kernel = direction, code, kernel
        self.of_integers = False  # a density that is fitted to integers would collapse on them
        self.dilations, self.components, self.min_scale = list(dilations), components, min_scale
        self.vae = CodeVAE(code, channels, levels, latents, filters, blocks, dropout, patch_size)

    def prepare(self, noisy: Tensor, mean: Tensor, std: Tensor) -> None:
        super().prepare(noisy, mean, std)
        self.of_integers = bool((noisy == noisy.round()).all())

    def training_step(self, noisy: Tensor) -> tuple[Tensor, Tensor]:
        """(loss, draw): the negative ELBO in nats per pixel of raw counts, plus the signal decoder's MSE in
        units of the data's variance. The MSE trains the signal decoder and nothing else."""
        if self.of_integers:
            noisy = noisy + torch.rand_like(noisy) - 0.5
        x = (noisy - self.mean) / self.std
        code, kl = self.vae.code(self.vae.encode(x), *noisy.shape[-2:])
        signal = self.vae.signal(code.detach())
        reconstruction = self.std.log().mean() - self.log_density(x, code).mean()
        self.log_kl(kl)
        elbo_loss = reconstruction + self.warmed_up(self.kl_cost(kl)) / noisy[0].numel()
        return elbo_loss + F.mse_loss(signal, x), signal * self.std + self.mean

    def log_density(self, x: Tensor, code: Tensor) -> Tensor:
        """log p(x | code) in nats, (B * C, H, W) or its transpose.

        x (B, C, H, W) is standardized, code is (B, C * code, H, W): each channel has its own part of it.
        """
        x, code = (
            x.flatten(0, 1).unsqueeze(1),
            code.unflatten(1, (len(self.mean), -1)).flatten(0, 1),
        )
        if self.direction == "y":
            x, code = x.transpose(-1, -2), code.transpose(-1, -2)
        return self.noise_model.log_density(x, code)


class CodeVAE(LadderVAE):
    """A ladder VAE that ends in a code of each pixel, and a decoder from the code to the signal."""

    def __init__(self, code: int, channels: int, levels: int, latents: int, filters: int, *rest) -> None:
        super().__init__(channels, levels, latents, filters, *rest)
        self.head = nn.Conv2d(filters, channels * code, 1)
        self.signal = SignalDecoder(channels * code, code, channels)

    def code(self, bottom_up: list[Tensor], *size: int) -> tuple[Tensor, Tensor]:
        """Draws latents once -> code (B, channels * code, *size), and KL (B, levels) in nats."""
        return super().decode(bottom_up, *size)

    def decode(self, bottom_up: list[Tensor], *size: int) -> tuple[Tensor, Tensor]:
        """Draws latents once -> signal (B, C, *size), standardized, and KL (B, levels) in nats."""
        code, kl = self.code(bottom_up, *size)
        return self.signal(code.detach()), kl


class SignalDecoder(nn.Module):
    """Four 3x3 convolutions with reflected borders; ELU, because units of the published ReLU can die."""

    def __init__(self, code: int, filters: int, channels: int) -> None:
        super().__init__()
        sizes = [code, filters, filters, filters, channels]
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 3) for a, b in pairwise(sizes))

    def forward(self, x: Tensor) -> Tensor:
        mode = "reflect" if min(x.shape[-2:]) > 1 else "replicate"  # a single pixel cannot be reflected
        *layers, last = self.layers
        for layer in layers:
            x = F.elu(layer(F.pad(x, (1, 1, 1, 1), mode)))
        return in_float32(last, F.pad(x, (1, 1, 1, 1), mode))
