"""Small, fast students: a U-Net of plain convolutions on pixel-unshuffled images."""

from itertools import pairwise

from torch import Tensor, nn

from students.dimensions import CONV, CONV_TRANSPOSE, Shuffle, Unshuffle, check_dims
from students.precision import in_float32
from students.upscale import conv, factors, upscaled

FEATURES = 16  # channels at full resolution in a head that enlarges the image


class LightUNet(nn.Module):
    """A small U-Net: (B, in_channels, *S) -> (B, out_channels, *S).

    The sides S must be multiples of unshuffle * 2^depth. `unshuffle` x `unshuffle` pixels, in volumes cubes
    of that side, become channels of one coarser pixel, and the output is shuffled back (Shi et al. 2016,
    arXiv:1609.05158). Skips are added, not concatenated. There is no normalisation, so a pixel depends
    neither on the rest of the batch nor on the position of the tile: at depth 3 tiles with a halo of 96 px
    give exactly the result of the whole image.

    Args:
        in_channels: number of channels of the input.
        out_channels: number of channels of the output.
        width: channels of the finest level, 16 to 64, or 8 with unshuffle 1.
        depth: how many times the network halves the image.
        growth: factor from the channels of one level to those of the next coarser one, which are rounded to
            multiples of 8 for the vector units of CPUs.
        unshuffle: side in pixels of the blocks that become one coarser pixel.
        separable: whether to use depthwise and pointwise convolutions in place of 3x3 convolutions. They have
            a quarter of the parameters and FLOPs; on a CPU the quality is about that of a network with fewer
            channels that takes the same time.
        scale: factor by which the output is larger than the input; one whole number, or one each for Y and
            X. Default: 1, which volumes need.
        dims: 2 for images (Y, X), 3 for volumes (Z, Y, X), of which all axes are halved.
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 1,
        width: int = 32,
        depth: int = 3,
        growth: float = 1.5,
        unshuffle: int = 2,
        separable: bool = False,
        scale: int | tuple[int, int] = 1,
        dims: int = 2,
    ) -> None:
        super().__init__()
        check_dims("LightUNet", dims)
        if min(width, depth, unshuffle) < 1 or growth <= 0:
            raise ValueError(
                f"LightUNet: got {width=}, {depth=}, {growth=}, {unshuffle=}; growth must be above 0, the "
                "others at least 1"
            )
        self.in_channels, self.out_channels = in_channels, out_channels
        self.width, self.depth, self.growth = width, depth, growth
        self.unshuffle, self.separable, self.scale, self.dims = unshuffle, separable, scale, dims
        block = unshuffle**dims  # pixels that become one
        self.multiple = unshuffle * 2**depth
        widths = [width] + [8 * max(1, round(width * growth**i / 8)) for i in range(1, depth + 1)]
        self.stem = nn.Sequential(Unshuffle(unshuffle), conv(in_channels * block, width, dims=dims))
        self.encoders = nn.ModuleList(Residual(w, separable, dims) for w in widths[:-1])
        self.downs = nn.ModuleList(CONV[dims](a, b, 2, stride=2) for a, b in pairwise(widths))
        self.bottom = Residual(widths[-1], separable, dims)
        self.ups = nn.ModuleList(CONV_TRANSPOSE[dims](b, a, 2, stride=2) for a, b in pairwise(widths))
        self.decoders = nn.ModuleList(Residual(w, separable, dims) for w in widths[:-1])
        enlarges = factors(scale) != (1, 1)
        features = FEATURES if enlarges else out_channels
        self.head = nn.Sequential(conv(width, features * block, dims=dims), Shuffle(unshuffle))
        if enlarges:
            self.head.extend([nn.ReLU(inplace=True), upscaled(features, out_channels, scale, dims)])

    def forward(self, x: Tensor) -> Tensor:
        features = self.body(in_float32(self.stem, x))  # bf16 would round the image
        return in_float32(self.head, features)

    def body(self, x: Tensor) -> Tensor:
        """(B, width, *S / unshuffle) -> the same shape."""
        skips = []
        for encode, down in zip(self.encoders, self.downs, strict=True):
            skips.append(encode(x))
            x = down(skips[-1])  # half the size, `growth` times the channels
        x = self.bottom(x)
        for i in reversed(range(self.depth)):
            x = self.decoders[i](skips[i] + self.ups[i](x))
        return x


class Residual(nn.Module):
    """x + f(x), where f is two convolutions with a ReLU between them."""

    def __init__(self, width: int, separable: bool, dims: int = 2) -> None:
        super().__init__()
        kind = separable_conv if separable else conv
        self.body = nn.Sequential(
            kind(width, width, dims=dims), nn.ReLU(inplace=True), kind(width, width, dims=dims)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def separable_conv(inputs: int, outputs: int, dims: int = 2) -> nn.Sequential:
    """A convolution of 3 pixels along each axis of each channel by itself, then one across channels."""
    depthwise = conv(inputs, inputs, dims=dims, groups=inputs)
    return nn.Sequential(depthwise, CONV[dims](inputs, outputs, 1))
