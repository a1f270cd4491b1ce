"""Layers in float32 for the parts of a network that decide the last digits of an image."""

import torch
from torch import Tensor, nn


def in_float32(layer: nn.Module, x: Tensor) -> Tensor:
    """`layer(x)` in float32 even under autocast, because bf16 has 8 bits: steps of 12 counts at 3,100."""
    with torch.autocast(x.device.type, enabled=False):
        return layer(x.float())
