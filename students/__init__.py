"""Students, the networks that answer in one pass: any nn.Module (B, C, *S) -> (B, K, *S)."""

from students.encoder_decoder import EncoderDecoder
from students.light import LightUNet
from students.noise_conditioned import NoiseConditioned
from students.stabilized import StabilizedUNet
from students.unet import UNet

__all__ = ["EncoderDecoder", "LightUNet", "NoiseConditioned", "StabilizedUNet", "UNet"]
