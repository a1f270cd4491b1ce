"""The ladder VAE of HDN (Prakash et al., ICLR 2022): deterministic bottom-up, stochastic top-down."""

from collections.abc import Iterable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from students.precision import in_float32

MAX_LOGVAR = 12.0


class ResidualBlock(nn.Module):
    """x + gate(2 x (batch norm, ELU, 3x3 convolution, channel dropout)(x))."""

    def __init__(self, filters: int, dropout: float, gated: bool = True) -> None:
        super().__init__()
        self.body = nn.Sequential(*_unit(filters, dropout), *_unit(filters, dropout))
        self.gate = nn.Conv2d(filters, 2 * filters, 1) if gated else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        if self.gate is not None:
            y, gate = self.gate(y).chunk(2, dim=1)
            y = F.elu(y) * gate.sigmoid()
        return x + y


def _unit(filters: int, dropout: float) -> list[nn.Module]:
    return [
        nn.BatchNorm2d(filters),
        nn.ELU(inplace=True),
        nn.Conv2d(filters, filters, 3, padding=1),
        nn.Dropout2d(dropout),
    ]


class Merge(nn.Module):
    """Two feature maps of equal size into one."""

    def __init__(self, filters: int, dropout: float) -> None:
        super().__init__()
        self.project = nn.Conv2d(2 * filters, filters, 1)
        self.block = ResidualBlock(filters, dropout)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.block(self.project(torch.cat([a, b], dim=1)))


class TopDownLevel(nn.Module):
    """One stochastic level: prior p(z | above), posterior q(z | above, bottom-up), features one
    octave finer."""

    def __init__(
        self, filters: int, finer: int, latents: int, blocks: int, dropout: float, top_size: int
    ) -> None:
        """top_size > 0 makes it the top level, whose prior is learned instead of computed.
        finer: filters of the level below, which its features are for."""
        super().__init__()
        self.is_top = top_size > 0
        if self.is_top:
            # zeros are N(0, I); per position, at the size of the training patches
            self.prior = nn.Parameter(torch.zeros(1, 2 * latents, top_size, top_size))
        else:
            self.to_prior = nn.Conv2d(filters, 2 * latents, 3, padding=1)
            self.merge = Merge(filters, dropout)
            self.merge_latent = Merge(filters, dropout)
        self.to_posterior = nn.Conv2d(filters, 2 * latents, 3, padding=1)
        self.from_latent = nn.Conv2d(latents, filters, 3, padding=1)
        self.up = nn.Sequential(
            nn.ConvTranspose2d(filters, finer, 3, stride=2, padding=1, output_padding=1),
            *[ResidualBlock(finer, dropout) for _ in range(blocks)],
        )

    def forward(self, bottom_up: Tensor, above: Tensor | None, active: bool) -> tuple[Tensor, Tensor]:
        """(B, F, h, w) twice -> features (B, F', 2h, 2w) and KL(q || p) per image (B,) in nats."""
        if self.is_top:
            prior = self.prior
            if prior.shape[-2:] != bottom_up.shape[-2:]:
                prior = F.interpolate(prior, bottom_up.shape[-2:])
            posterior = self.to_posterior(bottom_up)
        else:
            prior = self.to_prior(above)
            posterior = self.to_posterior(self.merge(bottom_up, above) if active else above)
        mean, logvar = moments(posterior)
        kl = gaussian_kl(mean, logvar, *moments(prior))
        draws = active or self.training  # a deactivated level draws in training only, as published
        latent = mean + (logvar / 2).exp() * torch.randn_like(mean) if draws else mean
        features = self.from_latent(latent)
        if not self.is_top:
            features = self.merge_latent(features, above)
        return self.up(features), kl


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log-variance of latents, in float32, for they must not be rounded. A log-variance beyond
    what training reaches would overflow in exp, and one such step ends a training with NaN."""
    mean, logvar = features.float().chunk(2, dim=1)
    return mean, logvar.clamp(-MAX_LOGVAR, MAX_LOGVAR)


def gaussian_kl(mean: Tensor, logvar: Tensor, prior_mean: Tensor, prior_logvar: Tensor) -> Tensor:
    """KL between diagonal Gaussians, summed over channels and space: (B,) in nats."""
    gap = (logvar.exp() + (mean - prior_mean).square()) * (-prior_logvar).exp()
    return 0.5 * (prior_logvar - logvar + gap - 1).sum(dim=(1, 2, 3))


class LadderVAE(nn.Module):
    """Standardized images -> signal features, through `levels` stochastic levels.

    active_levels: those, numbered from 1 (finest), that see the image; the others only pass on
    what is above them (HDN3-6 is 3, 4, 5, 6).
    unshuffle: every `unshuffle` x `unshuffle` pixels become channels of one, so that nothing is
    computed at full resolution, where the published network (1) does 70 % of its arithmetic.
    growth: factor from one level's filters to the next coarser one's, kept to multiples of 8.
    in_channels: of the images that it encodes, by default `channels`, which it gives.
    """

    def __init__(
        self,
        channels: int = 1,
        levels: int = 6,
        latents: int = 32,
        filters: int = 64,
        blocks: int = 5,
        dropout: float = 0.2,
        patch_size: int = 64,
        active_levels: Iterable[int] | None = None,
        unshuffle: int = 1,
        growth: float = 1.0,
        in_channels: int | None = None,
    ) -> None:
        super().__init__()
        everything = range(1, levels + 1)
        self.active = set(everything if active_levels is None else active_levels)
        if not self.active or not self.active <= set(everything):
            raise ValueError(
                f"active_levels: got {sorted(self.active)}, allowed are numbers from 1 (finest) "
                f"to {levels} (coarsest), at least one"
            )
        if unshuffle < 1 or growth <= 0:
            raise ValueError(f"LadderVAE: got {unshuffle=}, {growth=}; at least 1 and above 0 are allowed")
        widths = [filters, *(filters if growth == 1 else 8 * max(1, round(filters * growth**i / 8))
                             for i in range(1, levels + 1))]  # fmt: skip
        self.unshuffle, self.widths = unshuffle, widths
        self.multiple = unshuffle * 2**levels
        image_channels = channels * unshuffle**2
        top_size = max(1, -(-patch_size // self.multiple))
        self.stem = nn.Sequential(
            nn.Conv2d((in_channels or channels) * unshuffle**2, filters, 5, padding=2),
            nn.ELU(inplace=True),
            ResidualBlock(filters, dropout, gated=False),
        )
        self.bottom_up = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(finer, coarser, 3, stride=2, padding=1),
                *[ResidualBlock(coarser, dropout) for _ in range(blocks)],
            )
            for finer, coarser in pairwise(widths)
        )
        self.top_down = nn.ModuleList(
            TopDownLevel(widths[i], widths[i - 1], latents, blocks, dropout, top_size if i == levels else 0)
            for i in everything
        )
        self.final = nn.Sequential(*[ResidualBlock(filters, dropout) for _ in range(blocks)])
        self.head = nn.Conv2d(filters, image_channels, 3, padding=1)

    def encode(self, x: Tensor) -> list[Tensor]:
        """(B, C, H, W) standardized -> bottom-up features, finest first, at the padded size / 2^level."""
        height, width = x.shape[-2:]
        top, bottom = _centred(height, self.multiple)
        left, right = _centred(width, self.multiple)
        x = F.pad(x, (left, right, top, bottom))  # zero is the data's mean
        features = self.stem(F.pixel_unshuffle(x, self.unshuffle))
        bottom_up = []
        for level in self.bottom_up:
            features = level(features)
            bottom_up.append(features)
        return bottom_up

    def decode(self, bottom_up: list[Tensor], height: int, width: int) -> tuple[Tensor, Tensor]:
        """One draw -> signal (B, C, height, width) standardized, KL per image and level (B, levels)."""
        features, kl = None, []
        for i in reversed(range(len(bottom_up))):
            features, level_kl = self.top_down[i](bottom_up[i], features, i + 1 in self.active)
            kl.append(level_kl)
        features = self.final(features)
        top, left = _centred(height, self.multiple)[0], _centred(width, self.multiple)[0]
        window = (..., slice(top, top + height), slice(left, left + width))
        if self.unshuffle == 1:  # as published: the border is cut off before the last convolution
            signal = in_float32(self.head, features[window])
        else:
            signal = F.pixel_shuffle(in_float32(self.head, features), self.unshuffle)[window]
        return signal, torch.stack(kl[::-1], dim=1)


def _centred(size: int, multiple: int) -> tuple[int, int]:
    """Padding before and after that centres `size` in the next multiple."""
    total = -size % multiple
    return total // 2, total - total // 2
