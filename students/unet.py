"""The U-Net of the paper (section 5): residual blocks, strided down, nearest-neighbour up."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from students.precision import in_float32
from students.upscale import conv, factors, upscaled


class UNet(nn.Module):
    """(B, in_channels, H, W) -> (B, out_channels, H, W); H and W multiples of 2^depth, at least twice.

    scale: how many times larger the answer is; a whole number, or one each for Y and X.

    shared_convs applies one convolution twice in every residual block, as in the paper: 11,764,577
    parameters, its "approximately 12 million". Without it there are two convolutions, and 15,692,065.
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 1,
        depth: int = 4,
        filters: int = 32,
        shared_convs: bool = False,
        scale: int | tuple[int, int] = 1,
    ) -> None:
        super().__init__()
        factors(scale)
        if depth < 1 or filters < 1:
            raise ValueError(f"UNet: got depth={depth}, filters={filters}; both must be at least 1")
        self.in_channels, self.out_channels = in_channels, out_channels
        self.depth, self.filters, self.shared_convs, self.scale = depth, filters, shared_convs, scale
        self.multiple = 2**depth
        widths = [filters * 2**i for i in range(depth + 1)]
        self.stem = ConvReLU(in_channels, filters)
        self.encoders = nn.ModuleList(Residual(w, 2, shared_convs) for w in widths[:-1])
        self.downs = nn.ModuleList(ConvReLU(w, 2 * w, stride=2) for w in widths[:-1])
        self.decoders = nn.ModuleList(Residual(2 * w, 2, shared_convs) for w in widths[:-1])
        self.ups = nn.ModuleList(ConvReLU(2 * w, w) for w in widths[:-1])
        self.merges = nn.ModuleList(
            nn.Sequential(Residual(2 * w, 1, shared_convs), ConvReLU(2 * w, w)) for w in widths[:-1]
        )
        self.head = nn.Sequential(Residual(filters, 2, shared_convs), upscaled(filters, out_channels, scale))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        skips = []
        for encode, down in zip(self.encoders, self.downs, strict=True):
            x = encode(x)
            skips.append(x)
            x = down(x)  # half the size, twice the channels
        for i in reversed(range(self.depth)):
            x = F.interpolate(self.decoders[i](x), scale_factor=2.0)
            x = self.merges[i](torch.cat([skips[i], self.ups[i](x)], dim=1))
        residual, last = self.head
        return in_float32(last, residual(x))


class ConvReLU(nn.Sequential):
    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__(conv(inputs, outputs, stride), nn.ReLU(inplace=True))


class Residual(nn.Module):
    """x + f(x), where f is `convs` convolutions, each with its ReLU."""

    def __init__(self, filters: int, convs: int, shared: bool) -> None:
        super().__init__()
        units = [ConvReLU(filters, filters) for _ in range(1 if shared else convs)]
        self.body = nn.Sequential(*(units * convs if shared else units))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)
