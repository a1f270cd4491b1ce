"""float32 where the last digits of an image are made."""

import torch
from torch import Tensor, nn


def in_float32(layer: nn.Module, x: Tensor) -> Tensor:
    """`layer(x)` in float32 even under autocast: bf16 has 8 significant bits, steps of 12 counts at 3,100."""
    with torch.autocast(x.device.type, enabled=False):
        return layer(x.float())
