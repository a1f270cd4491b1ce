"""HDN: a hierarchical VAE that learns to denoise from noisy images alone (Prakash et al., 2022)."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from samplers.base import PosteriorSampler, evaluating
from samplers.ladder_vae import LadderVAE
from samplers.noise import GaussianNoise, NoiseModel

DRAW_PIXELS = 2**17  # pixels that are decoded at once: bounds the memory of many draws


class HDN(PosteriorSampler):
    """Hierarchical DivNoising with its published defaults.

    noise_model: p(noisy | signal); None estimates variance = gain * signal + offset from the
    noisy training images. free_bits: nats per level and image below which the KL costs nothing.
    active_levels: see LadderVAE; HDN3-6 for structured noise is range(3, 7).
    """

    def __init__(
        self,
        noise_model: NoiseModel | None = None,
        *,
        channels: int = 1,
        levels: int = 6,
        latents: int = 32,
        filters: int = 64,
        blocks: int = 5,
        dropout: float = 0.2,
        patch_size: int = 64,
        free_bits: float = 1.0,
        active_levels: Iterable[int] | None = None,
    ) -> None:
        super().__init__()
        self.noise_model = noise_model
        self.channels, self.levels, self.latents = channels, levels, latents
        self.filters, self.blocks, self.dropout = filters, blocks, dropout
        self.patch_size, self.free_bits = patch_size, free_bits
        self.active_levels = None if active_levels is None else sorted(active_levels)
        self.vae = LadderVAE(
            channels, levels, latents, filters, blocks, dropout, patch_size, self.active_levels
        )
        self.register_buffer("mean", torch.zeros(channels, 1, 1))
        self.register_buffer("std", torch.ones(channels, 1, 1))

    def prepare(self, noisy: Tensor, mean: Tensor, std: Tensor) -> None:
        if len(mean) != self.channels:
            raise ValueError(
                f"HDN: got images of {len(mean)} channels, made for {self.channels}; pass "
                f"channels={len(mean)}, or one channel at a time"
            )
        self.mean.copy_(mean)
        self.std.copy_(std)
        if self.noise_model is None:
            self.noise_model = GaussianNoise.estimate(noisy).to(self.mean.device)

    def training_step(self, noisy: Tensor) -> tuple[Tensor, Tensor]:
        """Negative ELBO in nats per pixel of raw counts, and the draw that it was computed from."""
        bottom_up = self.vae.encode((noisy - self.mean) / self.std)
        signal, kl = self.vae.decode(bottom_up, *noisy.shape[-2:])
        signal = signal * self.std + self.mean
        reconstruction = -self.noise_model.log_likelihood(noisy, signal).mean()
        pixels = noisy[0].numel()
        return reconstruction + self.free_nats(kl) / pixels, signal

    def free_nats(self, kl: Tensor) -> Tensor:
        """(B, levels) -> scalar: each image's KL per level counts from `free_bits` upwards."""
        return kl.clamp(min=self.free_bits).mean(dim=0).sum()

    def draws(self, noisy: Tensor, n: int) -> Iterator[Tensor]:
        """Encodes once; decodes several draws at a time, as many as DRAW_PIXELS allows."""
        with evaluating(self):
            bottom_up = self.vae.encode((noisy - self.mean) / self.std)
        at_once = max(1, min(n, DRAW_PIXELS // (noisy[:, 0].numel())))
        for start in range(0, n, at_once):
            k = min(at_once, n - start)
            with evaluating(self):  # not around the yield, where it would leak to the caller
                repeated = [level.repeat(k, 1, 1, 1) for level in bottom_up]
                signal, _ = self.vae.decode(repeated, *noisy.shape[-2:])
                signal = signal * self.std + self.mean
            yield from signal.unflatten(0, (k, len(noisy)))

    def sample(self, noisy: Tensor, n: int = 1) -> Tensor:
        return torch.stack(list(self.draws(noisy, n)))
