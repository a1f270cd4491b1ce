"""HDN for noise that is correlated between pixels, with a noise model fitted before or none."""

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

    noise_model: fitted to frames without signal, or to noisy - signal (an object or its .npz
    file); it stays as it is. For noise that depends on the signal, or if there is nothing to
    fit it to: JointNoiseVAE.
    Without dropout and free bits, as published; 0.5 to 1 free bits help if the KL sticks at 0.
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

    For noise that is correlated along one axis only, even if it depends on the signal: `x`
    along the rows, `y` along the columns. The ladder VAE ends in a code of each pixel; p(noisy |
    code) conditions each pixel on its code and on those before it along that axis, so it can
    explain line noise; the rest of the image has to pass through the code. A draw is what a
    second decoder, trained by MSE against the noisy image, reads from the code: E[noisy | code].
    Integers are dequantised in training, as AutoregressiveNoise.fit does.

    The ladder and its sizes are HDN's, and so is free_bits = 1: with 0, as published, some runs let
    the noise decoder explain everything and end with a constant signal. code: channels of the
    code, and filters of both decoders. kernel, dilations: the noise decoder sees (kernel - 1) *
    (1 + sum of dilations) pixels of the line, 40 as published. components: of its mixture.
    """

    isotropic = False  # turned lines would count as signal; those of other rows may come in any order
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
        self.of_integers = False  # a density that learns from them would collapse on their values
        self.dilations, self.components, self.min_scale = list(dilations), components, min_scale
        self.vae = CodeVAE(code, channels, levels, latents, filters, blocks, dropout, patch_size)

    def prepare(self, noisy: Tensor, mean: Tensor, std: Tensor) -> None:
        super().prepare(noisy, mean, std)
        self.of_integers = bool((noisy == noisy.round()).all())

    def training_step(self, noisy: Tensor) -> tuple[Tensor, Tensor]:
        """(negative ELBO in nats per pixel of raw counts + the signal decoder's MSE in units of
        the data's variance, the draw). The MSE trains the signal decoder and nothing else."""
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
        """log p(x | code), x (B, C, H, W) standardized, code (B, C * code, H, W) -> (B * C, H, W)
        or its transpose. Each channel has its own part of the code."""
        x, code = (
            x.flatten(0, 1).unsqueeze(1),
            code.unflatten(1, (len(self.mean), -1)).flatten(0, 1),
        )
        if self.direction == "y":
            x, code = x.transpose(-1, -2), code.transpose(-1, -2)
        return self.noise_model.log_density(x, code)


class CodeVAE(LadderVAE):
    """The ladder VAE that ends in a code of each pixel, and a decoder from it to the signal."""

    def __init__(self, code: int, channels: int, levels: int, latents: int, filters: int, *rest) -> None:
        super().__init__(channels, levels, latents, filters, *rest)
        self.head = nn.Conv2d(filters, channels * code, 1)
        self.signal = SignalDecoder(channels * code, code, channels)

    def code(self, bottom_up: list[Tensor], height: int, width: int) -> tuple[Tensor, Tensor]:
        """One draw -> code (B, channels * code, height, width), KL per image and level."""
        return super().decode(bottom_up, height, width)

    def decode(self, bottom_up: list[Tensor], height: int, width: int) -> tuple[Tensor, Tensor]:
        """One draw -> signal (B, C, height, width) standardized, KL per image and level."""
        code, kl = self.code(bottom_up, height, width)
        return self.signal(code.detach()), kl


class SignalDecoder(nn.Module):
    """Four 3x3 convolutions over reflected borders. ELU, because the published ReLU can die."""

    def __init__(self, code: int, filters: int, channels: int) -> None:
        super().__init__()
        sizes = [code, filters, filters, filters, channels]
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 3) for a, b in pairwise(sizes))

    def forward(self, x: Tensor) -> Tensor:
        mode = "reflect" if min(x.shape[-2:]) > 1 else "replicate"  # one pixel has no reflection
        *layers, last = self.layers
        for layer in layers:
            x = F.elu(layer(F.pad(x, (1, 1, 1, 1), mode)))
        return in_float32(last, F.pad(x, (1, 1, 1, 1), mode))
