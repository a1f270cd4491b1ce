"""The U-Net of the paper (section 5): residual blocks, strided convolutions, nearest-neighbour upsampling."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from students.dimensions import check_dims
from students.precision import in_float32
from students.upscale import conv, factors, upscaled


class UNet(nn.Module):
    """The U-Net of the paper: (B, in_channels, *S) -> (B, out_channels, *S).

    The sides S must be multiples of 2^depth, and those of images at least twice that.

    Args:
        in_channels: number of channels of the input.
        out_channels: number of channels of the output.
        depth: how many times the network halves the image.
        filters: number of filters of the finest level, doubled at each level below.
        shared_convs: whether each residual block applies one convolution twice, as in the paper, which gives
            11,764,577 parameters (there "approximately 12 million"). Otherwise a block has two
            convolutions, and the network 15,692,065 parameters.
        scale: factor by which the output is larger than the input; one whole number, or one each for Y and
            X. Default: 1, which volumes need.
        dims: 2 for images (Y, X), 3 for volumes (Z, Y, X), of which all axes are halved.
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 1,
        depth: int = 4,
        filters: int = 32,
        shared_convs: bool = False,
        scale: int | tuple[int, int] = 1,
        dims: int = 2,
    ) -> None:
        super().__init__()
        factors(scale)
        check_dims("UNet", dims)
        if depth < 1 or filters < 1:
            raise ValueError(f"UNet: got depth={depth}, filters={filters}; both must be at least 1")
        self.in_channels, self.out_channels = in_channels, out_channels
        self.depth, self.filters, self.shared_convs, self.scale = depth, filters, shared_convs, scale
        self.dims = dims
        self.multiple = 2**depth
        widths = [filters * 2**i for i in range(depth + 1)]
        self.stem = ConvReLU(in_channels, filters, dims=dims)
        self.encoders = nn.ModuleList(Residual(w, 2, shared_convs, dims) for w in widths[:-1])
        self.downs = nn.ModuleList(ConvReLU(w, 2 * w, stride=2, dims=dims) for w in widths[:-1])
        self.decoders = nn.ModuleList(Residual(2 * w, 2, shared_convs, dims) for w in widths[:-1])
        self.ups = nn.ModuleList(ConvReLU(2 * w, w, dims=dims) for w in widths[:-1])
        self.merges = nn.ModuleList(
            nn.Sequential(Residual(2 * w, 1, shared_convs, dims), ConvReLU(2 * w, w, dims=dims))
            for w in widths[:-1]
        )
        self.head = nn.Sequential(
            Residual(filters, 2, shared_convs, dims), upscaled(filters, out_channels, scale, dims)
        )

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
    def __init__(self, inputs: int, outputs: int, stride: int = 1, dims: int = 2) -> None:
        super().__init__(conv(inputs, outputs, stride, dims), nn.ReLU(inplace=True))


class Residual(nn.Module):
    """x + f(x), where f is `convs` convolutions, each followed by a ReLU."""

    def __init__(self, filters: int, convs: int, shared: bool, dims: int = 2) -> None:
        super().__init__()
        units = [ConvReLU(filters, filters, dims=dims) for _ in range(1 if shared else convs)]
        self.body = nn.Sequential(*(units * convs if shared else units))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)
