"""Small, fast students: a U-Net of plain convolutions on pixel-unshuffled images."""

from itertools import pairwise

from torch import Tensor, nn

from students.precision import in_float32
from students.upscale import conv, factors, upscaled

FEATURES = 16  # channels at full resolution in a head that enlarges the image


class LightUNet(nn.Module):
    """A small U-Net: (B, in_channels, H, W) -> (B, out_channels, H, W).

    H and W must be multiples of unshuffle * 2^depth. `unshuffle` x `unshuffle` pixels become channels of one
    coarser pixel, and the output is shuffled back (Shi et al. 2016, arXiv:1609.05158). Skips are added, not
    concatenated. There is no normalisation, so a pixel depends neither on the rest of the batch nor on the
    position of the tile: at depth 3 tiles with a halo of 96 px give exactly the result of the whole image.

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
            X. Default: 1.
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
    ) -> None:
        super().__init__()
        if min(width, depth, unshuffle) < 1 or growth <= 0:
            raise ValueError(
                f"LightUNet: got {width=}, {depth=}, {growth=}, {unshuffle=}; growth must be above 0, the "
                "others at least 1"
            )
        self.in_channels, self.out_channels = in_channels, out_channels
        self.width, self.depth, self.growth = width, depth, growth
        self.unshuffle, self.separable, self.scale = unshuffle, separable, scale
        self.multiple = unshuffle * 2**depth
        widths = [width] + [8 * max(1, round(width * growth**i / 8)) for i in range(1, depth + 1)]
        self.stem = nn.Sequential(nn.PixelUnshuffle(unshuffle), conv(in_channels * unshuffle**2, width))
        self.encoders = nn.ModuleList(Residual(w, separable) for w in widths[:-1])
        self.downs = nn.ModuleList(nn.Conv2d(a, b, 2, stride=2) for a, b in pairwise(widths))
        self.bottom = Residual(widths[-1], separable)
        self.ups = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, stride=2) for a, b in pairwise(widths))
        self.decoders = nn.ModuleList(Residual(w, separable) for w in widths[:-1])
        enlarges = factors(scale) != (1, 1)
        features = FEATURES if enlarges else out_channels
        self.head = nn.Sequential(conv(width, features * unshuffle**2), nn.PixelShuffle(unshuffle))
        if enlarges:
            self.head.extend([nn.ReLU(inplace=True), upscaled(features, out_channels, scale)])

    def forward(self, x: Tensor) -> Tensor:
        features = self.body(in_float32(self.stem, x))  # bf16 would round the image
        return in_float32(self.head, features)

    def body(self, x: Tensor) -> Tensor:
        """(B, width, H / unshuffle, W / unshuffle) -> the same shape."""
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

    def __init__(self, width: int, separable: bool) -> None:
        super().__init__()
        kind = separable_conv if separable else conv
        self.body = nn.Sequential(kind(width, width), nn.ReLU(inplace=True), kind(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def separable_conv(inputs: int, outputs: int) -> nn.Sequential:
    """A 3x3 convolution of each channel by itself, then one across channels."""
    depthwise = nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs, padding_mode="reflect")
    return nn.Sequential(depthwise, nn.Conv2d(inputs, outputs, 1))
