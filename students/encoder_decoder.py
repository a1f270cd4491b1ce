"""Students with an encoder of timm and a decoder of segmentation-models-pytorch (smp)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from students import smp
from students.precision import in_float32
from students.upscale import conv, factors, upscaled

FEATURES = 8  # channels at full resolution; faster than 16, and as good on the built-in specimen


class EncoderDecoder(nn.Module):
    """A pretrained or new encoder with a decoder: (B, in_channels, H, W) -> (B, out_channels, H, W).

    H and W must be multiples of 2^depth.

    The decoders of smp see only features of half the resolution or less, never the pixels. So two further
    convolutions join their output with the input at full resolution. On the built-in specimen this gives
    30.2 dB; with the input merely added to the output it is 24.6 dB, and without the input 24.1 dB.

    Batch normalisation keeps its initial statistics, those of pretraining or of noise (`_settle`), and learns
    only scale and shift, because batch statistics of small patches differ from those of whole images (25.0 dB
    with them). With fixed statistics the network computes the same in training and prediction, and batches of
    one image work. Dropout is off.

    Predicting tile by tile gives the same result as the whole image only if nothing averages over a tile. So
    it differs with squeeze and excitation or attention (mobilenetv3, lcnet, efficientvit), and in FPN, MAnet,
    PSPNet, the DeepLabs and UPerNet.

    Args:
        architecture: Unet, UnetPlusPlus, MAnet, Linknet, FPN, PSPNet, DeepLabV3, DeepLabV3Plus, UPerNet or
            Segformer.
        encoder: "tu-" followed by the name of a model of timm, or the name of an encoder of smp.
        in_channels: number of channels of the input.
        out_channels: number of channels of the output.
        weights: initial weights of the encoder: "imagenet", which downloads them; or a .pth or .safetensors
            file of the classifier of that name in timm. Default: none, training starts from scratch. The
            attribute is None afterwards, because a checkpoint contains the trained weights.
        decoder_channels: channels of the decoder: `depth` numbers, coarse to fine, for Unet, UnetPlusPlus and
            MAnet; one number for others; none for Linknet. Default: 8 at full resolution and twice as many
            at each level below, or 64.
        depth: how many times the encoder halves the image, 3 to 5.
        scale: factor by which the output is larger than the input; one whole number, or one each for Y and
            X. Default: 1.
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
        with torch.inference_mode(False), torch.enable_grad():  # `_settle` computes gradients
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
        return in_float32(self.fuse, torch.cat([features, x], dim=1))  # bf16 would round x

    def train(self, mode: bool = True) -> "EncoderDecoder":
        super().train(mode)
        for norm in _batch_norms(self):
            norm.eval()
        return self

    def _settle(self, pretrained: bool) -> None:
        """Fixes the statistics of new batch normalisation, and drops unused parts of the encoder.

        The statistics are measured on noise like a standardized image, one layer after another. Features with
        more than unit variance are standardized; those of mobileone_s0 would grow to 1e14 otherwise. Features
        with less are not amplified, which cost 0.3 dB, because deep features are noise at first. An encoder
        of less than full depth contains layers that it does not use.
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
    """Replaces every part that received no gradient by an identity."""
    for name, child in module.named_children():
        parameters = list(child.parameters())
        if parameters and all(p.grad is None for p in parameters):
            setattr(module, name, nn.Identity())
        else:
            _drop_unused(child)
