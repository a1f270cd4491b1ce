"""The ladder VAE of HDN (Prakash et al., ICLR 2022), deterministic bottom-up and stochastic top-down."""

from collections.abc import Iterable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from students.dimensions import (
    BATCH_NORM,
    CONV,
    CONV_TRANSPOSE,
    DROPOUT,
    check_dims,
    padding,
    shuffled,
    unshuffled,
)
from students.precision import in_float32

MAX_LOGVAR = 12.0


class ResidualBlock(nn.Module):
    """x + gate(f(x)), where f is twice: batch norm, ELU, 3x3 convolution, channel dropout."""

    def __init__(self, filters: int, dropout: float, gated: bool = True, dims: int = 2) -> None:
        super().__init__()
        self.body = nn.Sequential(*_unit(filters, dropout, dims), *_unit(filters, dropout, dims))
        self.gate = CONV[dims](filters, 2 * filters, 1) if gated else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        if self.gate is not None:
            y, gate = self.gate(y).chunk(2, dim=1)
            y = F.elu(y) * gate.sigmoid()
        return x + y


def _unit(filters: int, dropout: float, dims: int) -> list[nn.Module]:
    return [
        BATCH_NORM[dims](filters),
        nn.ELU(inplace=True),
        CONV[dims](filters, filters, 3, padding=1),
        DROPOUT[dims](dropout),
    ]


class Merge(nn.Module):
    """Merges two feature maps of equal size into one."""

    def __init__(self, filters: int, dropout: float, dims: int = 2) -> None:
        super().__init__()
        self.project = CONV[dims](2 * filters, filters, 1)
        self.block = ResidualBlock(filters, dropout, dims=dims)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.block(self.project(torch.cat([a, b], dim=1)))


class TopDownLevel(nn.Module):
    """One stochastic level: prior p(z | above), posterior q(z | above, bottom-up), and finer features."""

    def __init__(
        self,
        filters: int,
        finer: int,
        latents: int,
        blocks: int,
        dropout: float,
        top_size: int,
        dims: int = 2,
    ) -> None:
        """Builds the level.

        top_size: size in pixels of the learned prior of the top level; 0 for other levels, whose prior is
        computed from the level above.
        finer: number of filters of the level below, which receives the features.
        """
        super().__init__()
        self.is_top = top_size > 0
        if self.is_top:
            # zeros mean N(0, I); one prior per position, at the size of the training patches
            self.prior = nn.Parameter(torch.zeros(1, 2 * latents, *[top_size] * dims))
        else:
            self.to_prior = CONV[dims](filters, 2 * latents, 3, padding=1)
            self.merge = Merge(filters, dropout, dims)
            self.merge_latent = Merge(filters, dropout, dims)
        self.to_posterior = CONV[dims](filters, 2 * latents, 3, padding=1)
        self.from_latent = CONV[dims](latents, filters, 3, padding=1)
        self.up = nn.Sequential(
            CONV_TRANSPOSE[dims](filters, finer, 3, stride=2, padding=1, output_padding=1),
            *[ResidualBlock(finer, dropout, dims=dims) for _ in range(blocks)],
        )

    def forward(self, bottom_up: Tensor, above: Tensor | None, active: bool) -> tuple[Tensor, Tensor]:
        """Two maps (B, F, *s) -> features (B, F', *2s) and KL(q || p) per image (B,) in nats."""
        if self.is_top:
            prior = self.prior
            if prior.shape[2:] != bottom_up.shape[2:]:
                prior = F.interpolate(prior, bottom_up.shape[2:])
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
    """Mean and log-variance of latents, in float32, because half precision would round them.

    The log-variance is bounded: one value beyond the range that training reaches would overflow in exp, and
    a single NaN ends a training.
    """
    mean, logvar = features.float().chunk(2, dim=1)
    return mean, logvar.clamp(-MAX_LOGVAR, MAX_LOGVAR)


def gaussian_kl(mean: Tensor, logvar: Tensor, prior_mean: Tensor, prior_logvar: Tensor) -> Tensor:
    """KL between diagonal Gaussians, summed over channels and space: (B,) in nats."""
    gap = (logvar.exp() + (mean - prior_mean).square()) * (-prior_logvar).exp()
    return 0.5 * (prior_logvar - logvar + gap - 1).sum(dim=tuple(range(1, mean.ndim)))


class LadderVAE(nn.Module):
    """Standardized images -> signal features, through `levels` stochastic levels.

    Args:
        active_levels: levels that see the image, numbered from 1 (finest); the others only pass on the
            features from above. HDN3-6 has 3, 4, 5, 6. Default: all.
        unshuffle: `unshuffle` x `unshuffle` pixels become channels of one coarser pixel, so that nothing is
            computed at full resolution, where the published network (unshuffle 1) does 70 % of its
            arithmetic.
        growth: factor from the filters of one level to those of the next coarser one, which are rounded to
            multiples of 8.
        dims: 2 for images (Y, X), 3 for volumes (Z, Y, X), of which all axes are halved.
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
        dims: int = 2,
    ) -> None:
        super().__init__()
        check_dims("LadderVAE", dims)
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
        image_channels = channels * unshuffle**dims
        top_size = max(1, -(-patch_size // self.multiple))
        self.stem = nn.Sequential(
            CONV[dims](image_channels, filters, 5, padding=2),
            nn.ELU(inplace=True),
            ResidualBlock(filters, dropout, gated=False, dims=dims),
        )
        self.bottom_up = nn.ModuleList(
            nn.Sequential(
                CONV[dims](finer, coarser, 3, stride=2, padding=1),
                *[ResidualBlock(coarser, dropout, dims=dims) for _ in range(blocks)],
            )
            for finer, coarser in pairwise(widths)
        )
        self.top_down = nn.ModuleList(
            TopDownLevel(
                widths[i], widths[i - 1], latents, blocks, dropout, top_size if i == levels else 0, dims
            )
            for i in everything
        )
        self.final = nn.Sequential(*[ResidualBlock(filters, dropout, dims=dims) for _ in range(blocks)])
        self.head = CONV[dims](filters, image_channels, 3, padding=1)

    def encode(self, x: Tensor) -> list[Tensor]:
        """Standardized (B, C, *S) -> bottom-up features, finest first, at the padded size / 2^level."""
        x = F.pad(x, padding([_centred(n, self.multiple) for n in x.shape[2:]]))  # zero is the data's mean
        features = self.stem(unshuffled(x, self.unshuffle))
        bottom_up = []
        for level in self.bottom_up:
            features = level(features)
            bottom_up.append(features)
        return bottom_up

    def decode(self, bottom_up: list[Tensor], *size: int) -> tuple[Tensor, Tensor]:
        """Draws latents once -> signal (B, C, *size), standardized, and KL (B, levels) in nats."""
        features, kl = None, []
        for i in reversed(range(len(bottom_up))):
            features, level_kl = self.top_down[i](bottom_up[i], features, i + 1 in self.active)
            kl.append(level_kl)
        features = self.final(features)
        starts = [_centred(n, self.multiple)[0] for n in size]
        window = (..., *(slice(start, start + n) for start, n in zip(starts, size, strict=True)))
        if self.unshuffle == 1:  # as published: the border is cut off before the last convolution
            signal = in_float32(self.head, features[window])
        else:
            signal = shuffled(in_float32(self.head, features), self.unshuffle)[window]
        return signal, torch.stack(kl[::-1], dim=1)


def _centred(size: int, multiple: int) -> tuple[int, int]:
    """Padding before and after that centres `size` in the next multiple of `multiple`."""
    total = -size % multiple
    return total // 2, total - total // 2
