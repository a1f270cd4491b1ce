"""HDN: a hierarchical VAE that learns to denoise from noisy images alone (Prakash et al., 2022)."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from samplers.base import LEARNING_RATE
from samplers.ladder_vae import LadderVAE
from samplers.noise import NoiseModel
from samplers.vae import VAESampler

LIGHT: dict[str, Any] = dict(
    levels=3, latents=16, filters=32, blocks=2, dropout=0.0, unshuffle=2
)  # fmt: skip


class HDN(VAESampler):
    """Hierarchical DivNoising with its published defaults.

    noise_model: p(noisy | signal), or the .npz file of one; None estimates variance = gain *
    signal + offset from the noisy training images. free_bits: nats per level and image below
    which the KL costs nothing. kl_warmup: training steps over which its weight rises from 0 to 1,
    0 as published; HDN3-6 with small networks or data needs it.
    active_levels, unshuffle, growth: see LadderVAE; HDN3-6 for structured noise is range(3, 7), and
    HDN(**LIGHT) a network of half the resolution that a CPU trains in minutes.
    in_channels: `channels`, and those of neighbouring planes that the encoder sees too; by default none.
    """

    def __init__(
        self,
        noise_model: NoiseModel | str | None = None,
        *,
        channels: int = 1,
        levels: int = 6,
        latents: int = 32,
        filters: int = 64,
        blocks: int = 5,
        dropout: float = 0.2,
        patch_size: int = 64,
        free_bits: float = 1.0,
        kl_warmup: int = 0,
        active_levels: Iterable[int] | None = None,
        unshuffle: int = 1,
        growth: float = 1.0,
        in_channels: int | None = None,
    ) -> None:
        super().__init__(noise_model, channels, kl_warmup, in_channels)
        self.levels, self.latents = levels, latents
        self.filters, self.blocks, self.dropout = filters, blocks, dropout
        self.patch_size, self.free_bits = patch_size, free_bits
        self.active_levels = None if active_levels is None else sorted(active_levels)
        self.unshuffle, self.growth = unshuffle, growth
        self.vae = LadderVAE(
            channels, levels, latents, filters, blocks, dropout, patch_size, self.active_levels,
            unshuffle, growth, self.in_channels,
        )  # fmt: skip
        self.width = sum(self.vae.widths) / len(self.vae.widths)

    @property
    def learning_rate(self) -> float:
        """Lower for wide and for deep networks: what one update of every weight changes in the output
        grows with the inputs of a convolution and with the blocks in a row. Measured on confocal FOV 1,
        batches of 4: at 2e-3 the loss of LIGHT with 48 filters that grow by 1.5 goes to 1e9 from step 45
        on, at 1.3e-3 it has a spike of 4e4, at 8e-4 none; that of 64 filters and 5 blocks rises from 3.8
        to 7 at 2e-3, and falls at 5e-4."""
        return LEARNING_RATE * min(1.0, 32 / self.width) * min(1.0, 2 / self.blocks)

    def kl_cost(self, kl: Tensor) -> Tensor:
        """(B, levels) -> scalar: each image's KL per level counts from `free_bits` upwards."""
        return kl.clamp(min=self.free_bits).mean(dim=0).sum()
