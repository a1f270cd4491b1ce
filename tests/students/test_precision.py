"""Under bf16 autocast an image keeps the digits of float32."""

import pytest
import torch
from torch import nn

from students import LightUNet, StabilizedUNet, UNet


def most_levels(image: torch.Tensor) -> int:
    """Distinct values in the octave that has most of them; bf16 has at most 128 in any."""
    return int(image.abs().unique().log2().floor().unique(return_counts=True)[1].max())


def encoder_decoder() -> nn.Module:
    pytest.importorskip("segmentation_models_pytorch")
    from students import EncoderDecoder

    return EncoderDecoder(depth=3)


BACKBONES = {
    "UNet": lambda: UNet(depth=2, filters=8),
    "LightUNet": lambda: LightUNet(width=8, depth=1),
    "StabilizedUNet": lambda: StabilizedUNet(width=8),
    "EncoderDecoder": encoder_decoder,
}


@pytest.mark.parametrize("kind", BACKBONES)
def test_a_student_answers_in_more_steps_than_bf16_has(kind):
    backbone, x = BACKBONES[kind]().eval(), torch.randn(1, 1, 64, 64)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        answer = backbone(x)
    assert answer.dtype == torch.float32 and most_levels(answer) > 256
