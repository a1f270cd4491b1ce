"""The U-Net of the paper (section 5): residual blocks, strided down, nearest-neighbour up."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class UNet(nn.Module):
    """(B, in_channels, H, W) -> (B, out_channels, H, W); H and W multiples of 2^depth, at least twice.

    shared_convs applies one convolution twice in every residual block, as the published code does
    (11,764,577 parameters); without it there are two, as the paper words it (15,692,065).
    negative_slope: of LeakyReLU; 0 is the published ReLU, of which half of the channels die.
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 1,
        depth: int = 4,
        filters: int = 32,
        shared_convs: bool = False,
        negative_slope: float = 0.1,
    ) -> None:
        super().__init__()
        if depth < 1 or filters < 1:
            raise ValueError(f"UNet: got depth={depth}, filters={filters}; both must be at least 1")
        self.in_channels, self.out_channels = in_channels, out_channels
        self.depth, self.filters = depth, filters
        self.shared_convs, self.negative_slope = shared_convs, negative_slope
        self.multiple = 2**depth

        def unit(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
            return nn.Sequential(conv(inputs, outputs, stride), nn.LeakyReLU(negative_slope, inplace=True))

        def residual(filters: int, convs: int = 2) -> Residual:
            units = [unit(filters, filters) for _ in range(1 if shared_convs else convs)]
            return Residual(*(units * convs if shared_convs else units))

        widths = [filters * 2**i for i in range(depth)]
        self.stem = unit(in_channels, filters)
        self.encoders = nn.ModuleList(residual(w) for w in widths)
        self.downs = nn.ModuleList(unit(w, 2 * w, stride=2) for w in widths)
        self.decoders = nn.ModuleList(residual(2 * w) for w in widths)
        self.ups = nn.ModuleList(unit(2 * w, w) for w in widths)
        self.merges = nn.ModuleList(nn.Sequential(residual(2 * w, 1), unit(2 * w, w)) for w in widths)
        self.head = nn.Sequential(residual(filters), conv(filters, out_channels))

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
        return self.head(x)


def conv(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, padding_mode="reflect")


class Residual(nn.Sequential):
    """x + f(x), where f is all its units."""

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)
