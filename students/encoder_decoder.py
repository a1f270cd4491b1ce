"""Students with an encoder of timm and a decoder of segmentation-models-pytorch (smp)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from students import smp
from students.precision import in_float32
from students.upscale import conv, factors, upscaled

FEATURES = 8  # channels at full resolution: as good as 16 on the built-in specimen, and faster


class EncoderDecoder(nn.Module):
    """(B, in_channels, H, W) -> (B, out_channels, H, W); H and W multiples of 2^depth.

    smp's decoders never see the pixels, only features of half their resolution or less. So two
    convolutions join their output with the input at full resolution. On the built-in specimen: 30.2 dB;
    with the input merely added to the output, 24.6 dB; with neither, 24.1 dB.

    Batch normalisation keeps its first statistics, those of pretraining or of noise (`_settle`), and
    learns scale and shift only: batch statistics of small patches differ from those of whole images
    (25.0 dB with them). With fixed statistics the network computes the same in training and prediction,
    and batches of one image work. Dropout is off.

    Tiles of an image give what the whole gives only if nothing averages over a tile: not with squeeze
    and excitation or attention (mobilenetv3, lcnet, efficientvit), nor in FPN, MAnet, PSPNet, the
    DeepLabs and UPerNet.

    Args:
        architecture: Unet, UnetPlusPlus, MAnet, Linknet, FPN, PSPNet, DeepLabV3, DeepLabV3Plus, UPerNet or
            Segformer.
        encoder: "tu-" and a model of timm, or a name of smp's own.
        weights: None from scratch; "imagenet", which downloads; or a .pth or .safetensors file of timm's
            classifier of that name. Afterwards None: a checkpoint holds the trained weights.
        decoder_channels: `depth` numbers, coarse to fine, for the U-shaped three, one for others, none for
            Linknet. By default 8 at full resolution and twice as many at each level below; or 64.
        depth: how many times the encoder halves the image, 3 to 5.
        scale: how many times larger the answer is; a whole number, or one each for Y and X.
    """

    files = ("weights",)  # never taken from a model file

    def __init__(
        self,
        architecture: str = "Unet",
        encoder: str = "tu-mobilenetv2_050",
        in_channels: int = 1,
        out_channels: int = 1,
        weights: str | None = None,
        decoder_channels: int | list[int] | None = None,
        depth: int = 5,
        scale: int | tuple[int, int] = 1,
    ) -> None:
        super().__init__()
        factors(scale)
        self.architecture, self.encoder, self.depth = architecture, encoder, depth
        self.in_channels, self.out_channels = in_channels, out_channels
        self.weights, self.decoder_channels, self.scale = None, decoder_channels, scale
        self.multiple = 2**depth
        with torch.inference_mode(False), torch.enable_grad():  # `_settle` asks for gradients
            self.network = smp.build(
                architecture, encoder, weights, decoder_channels, depth, in_channels, FEATURES
            )
            with smp.in_one_line(f"{architecture} with encoder {encoder} cannot take every size of image"):
                self._settle(pretrained=weights is not None)
        self.fuse = nn.Sequential(
            conv(FEATURES + in_channels, FEATURES),
            nn.ReLU(inplace=True),
            upscaled(FEATURES, out_channels, scale),
        )

    def forward(self, x: Tensor) -> Tensor:
        features = self.network(x)
        if features.shape[2:] != x.shape[2:]:  # FPN and others end at a fraction of the resolution
            features = F.interpolate(features, x.shape[2:], mode="bilinear")
        return in_float32(self.fuse, torch.cat([features, x], dim=1))  # x has more digits than bf16

    def train(self, mode: bool = True) -> "EncoderDecoder":
        super().train(mode)
        for norm in _batch_norms(self):
            norm.eval()
        return self

    def _settle(self, pretrained: bool) -> None:
        """Fixes the statistics of new batch normalisation on noise like a standardized image: whatever
        has grown above unit variance is standardized, one layer after another. And drops what an encoder
        of less than full depth holds without using it.

        mobileone_s0 grows to 1e14 otherwise. To amplify what has shrunk as well cost 0.3 dB: deep
        features are noise at first.
        """
        self.train()
        fresh = set(_batch_norms(self))
        if pretrained:
            fresh -= set(_batch_norms(self.network.get_submodule("encoder")))
        hooks = [norm.register_forward_pre_hook(_measure) for norm in fresh]
        noise = torch.randn(2, self.in_channels, 4 * self.multiple, 4 * self.multiple)
        self.network(noise).sum().backward()
        for hook in hooks:
            hook.remove()
        _drop_unused(self.network.get_submodule("encoder"))
        self.zero_grad()


def _batch_norms(module: nn.Module) -> list[_BatchNorm]:
    return [m for m in module.modules() if isinstance(m, _BatchNorm)]


@torch.no_grad()
def _measure(norm: nn.Module, inputs: tuple[Tensor]) -> None:
    variance, mean = torch.var_mean(inputs[0], dim=(0, 2, 3))
    norm.get_buffer("running_var").copy_(variance.clamp(min=1))
    norm.get_buffer("running_mean").copy_(mean * (variance > 1))


def _drop_unused(module: nn.Module) -> None:
    """Replaces every part that no gradient has reached."""
    for name, child in module.named_children():
        parameters = list(child.parameters())
        if parameters and all(p.grad is None for p in parameters):
            setattr(module, name, nn.Identity())
        else:
            _drop_unused(child)
