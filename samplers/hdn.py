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
    """Hierarchical DivNoising (Prakash et al., ICLR 2022), by default with the published network.

    HDN(**LIGHT) is a network at half the resolution, which a CPU trains in minutes. HDN3-6, for structured
    noise, is active_levels=range(3, 7).

    Args:
        noise_model: p(noisy | signal), or the .npz file of one. Default: a line, variance = gain * signal +
            offset, which is estimated from the noisy training images.
        channels: number of channels of the image.
        free_bits: nats per level and image below which the KL costs nothing.
        kl_warmup: training steps over which the weight of the KL rises from 0 to 1; 0, as published, for
            none. HDN3-6 needs it with small networks or little data.
        active_levels: see LadderVAE.
        unshuffle: see LadderVAE.
        growth: see LadderVAE.
        in_channels: number of channels of the model, those of neighbouring planes included, see VAESampler.
            Default: `channels`, without neighbouring planes.
        dims: 2 for images, 3 for volumes, see LadderVAE. Noise models are of planes, one after another.
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
        dims: int = 2,
    ) -> None:
        super().__init__(noise_model, channels, kl_warmup, in_channels, dims)
        self.levels, self.latents = levels, latents
        self.filters, self.blocks, self.dropout = filters, blocks, dropout
        self.patch_size, self.free_bits = patch_size, free_bits
        self.active_levels = None if active_levels is None else sorted(active_levels)
        self.unshuffle, self.growth = unshuffle, growth
        self.vae = LadderVAE(
            self.in_channels, levels, latents, filters, blocks, dropout, patch_size, self.active_levels,
            unshuffle, growth, dims,
        )  # fmt: skip
        self.width = sum(self.vae.widths) / len(self.vae.widths)

    @property
    def learning_rate(self) -> float:
        """Default learning rate, which is lower for wide and deep networks.

        The change of the output by one update of all weights grows with the number of inputs of a
        convolution and with the number of blocks in a row. Measured on confocal FOV 1 with batches of 4: at
        2e-3 the loss of LIGHT with 48 filters and growth 1.5 rises to 1e9 from step 45 on, at 1.3e-3 it has a
        spike of 4e4, at 8e-4 it has none; with 64 filters and 5 blocks it rises from 3.8 to 7 at 2e-3 and
        falls at 5e-4.
        """
        return LEARNING_RATE * min(1.0, 32 / self.width) * min(1.0, 2 / self.blocks)

    def kl_cost(self, kl: Tensor) -> Tensor:
        """(B, levels) -> scalar: nats per image, where a level counts only above `free_bits`."""
        return kl.clamp(min=self.free_bits).mean(dim=0).sum()
