"""Gated PixelCNN (van den Oord et al. 2016) with a Gaussian-mixture head, in standardized units."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samplers.noise.gmm import mixture_log_density
from students.precision import in_float32


class PixelCNN(nn.Module):
    """Predicts a mixture of Gaussians for each pixel from the pixels before it in raster order.

    It has one layer that does not see the pixel itself, then one layer per dilation.

    Args:
        rows_above: whether the context includes the rows above, through a vertical stack; otherwise it is the
            pixel's own row.
        code: number of channels of a code that conditions every layer; 0 for none, and always 0 with
            rows_above.
    """

    def __init__(
        self,
        filters: int,
        kernel: int,
        dilations: Sequence[int],
        components: int,
        min_scale: float,
        rows_above: bool = False,
        code: int = 0,
    ) -> None:
        super().__init__()
        if kernel < 3 or kernel % 2 == 0 or min(dilations, default=1) < 1:
            raise ValueError(
                f"PixelCNN: got kernel={kernel}, dilations={list(dilations)}; kernel must be odd "
                "and at least 3, dilations at least 1"
            )
        self.reach = (kernel - 1) * (1 + sum(dilations))  # pixels to the left, and rows above, in the context
        self.longest = (kernel - 1) * max(dilations, default=1)  # context of a single layer
        self.min_scale, steps = min_scale, [1, *dilations]
        channels = [1] + [filters] * len(dilations)  # input channels of each layer
        self.vertical_layers = nn.ModuleList(
            _Vertical(c, filters, kernel, d, first=i == 0)
            for i, (c, d) in enumerate(zip(channels, steps, strict=True))
            if rows_above
        )
        condition = 2 * filters if rows_above else code
        self.layers = nn.ModuleList(
            _Horizontal(c, filters, kernel, d, condition, first=i == 0)
            for i, (c, d) in enumerate(zip(channels, steps, strict=True))
        )
        self.head = nn.Conv2d(filters, 3 * components, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def vertical(self, x: Tensor) -> list[Tensor]:
        """(N, 1, H, W) -> for each layer, features (N, 2F, H, W) of the rows above each pixel."""
        conditions = []
        for layer in self.vertical_layers:
            conditions.append(layer(x))
            x = _gated(conditions[-1])
        return conditions

    def horizontal(self, x: Tensor, conditions: Sequence[Tensor | None]) -> Tensor:
        """(N, 1, H, W) and a condition for each layer -> mixture parameters (N, 3G, H, W)."""
        for layer, condition in zip(self.layers, conditions, strict=True):
            x = layer(x, condition)
        return in_float32(self.head, F.elu(x))

    def forward(self, x: Tensor, code: Tensor | None = None) -> Tensor:
        """(N, 1, H, W), (N, code, H, W) -> (N, 3G, H, W): unconstrained means, scales and logits."""
        return self.horizontal(x, self.vertical(x) or [code] * len(self.layers))

    def mixture(self, parameters: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(N, 3G, H, W) -> log weights, means and variances, each (G, N, H, W) in float32."""
        mean, scale, logits = parameters.float().unflatten(1, (3, -1)).permute(1, 2, 0, 3, 4)
        return logits.log_softmax(0), mean, (self.min_scale + F.softplus(scale)).square()

    def log_density(self, x: Tensor, code: Tensor | None = None) -> Tensor:
        """(N, 1, H, W) -> log p(pixel | pixels before it, code) in nats, (N, H, W)."""
        return mixture_log_density(x[:, 0].float(), *self.mixture(self(x, code)))

    def draw(self, parameters: Tensor) -> Tensor:
        """Mixture parameters (N, 3G, H, W) -> one random value per pixel (N, 1, H, W)."""
        log_weight, mean, variance = self.mixture(parameters)
        gumbel = -torch.empty_like(log_weight).exponential_().log()
        k = (log_weight + gumbel).argmax(0, keepdim=True)
        mean, std = mean.gather(0, k)[0], variance.gather(0, k)[0].sqrt()
        return (mean + std * torch.randn_like(mean)).unsqueeze(1)


class _Vertical(nn.Conv2d):
    """Convolution over the rows above and, except in the first layer, the pixel's own row."""

    def __init__(self, channels: int, filters: int, kernel: int, dilation: int, first: bool) -> None:
        super().__init__(channels, 2 * filters, (kernel - first, kernel), dilation=dilation)
        self.first, self.reach = first, dilation * (kernel - 1)

    def forward(self, x: Tensor) -> Tensor:
        side = self.reach // 2
        return super().forward(F.pad(x[:, :, :-1] if self.first else x, (side, side, self.reach, 0)))


class _Horizontal(nn.Module):
    """Convolution over the pixels to the left and, except in the first layer, the pixel itself."""

    def __init__(
        self, channels: int, filters: int, kernel: int, dilation: int, condition: int, first: bool
    ) -> None:
        super().__init__()
        self.first, self.reach = first, dilation * (kernel - 1)
        self.conv = nn.Conv2d(channels, 2 * filters, (1, kernel - first), dilation=(1, dilation))
        self.condition = nn.Conv2d(condition, 2 * filters, 1) if condition else None
        self.out = nn.Conv2d(filters, filters, 1)

    def forward(self, x: Tensor, condition: Tensor | None) -> Tensor:
        y = self.conv(F.pad(x[..., :-1] if self.first else x, (self.reach, 0)))
        if self.condition is not None:
            y = y + self.condition(condition)
        y = self.out(_gated(y))
        return y if self.first else x + y  # the x of the first layer contains the pixel itself


def _gated(x: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=1)
    return a.tanh() * b.sigmoid()
