"""Under bf16 autocast a draw keeps the digits of float32."""

import pytest
import torch

from samplers import HDN, DivNoising, JointNoiseVAE

SMALL = dict(levels=2, latents=2, filters=8, blocks=1)
SAMPLERS = {
    "HDN": lambda: HDN(**SMALL),
    "HDN at half the resolution": lambda: HDN(**SMALL, unshuffle=2),
    "DivNoising": lambda: DivNoising(filters=8, latents=4),
    "JointNoiseVAE": lambda: JointNoiseVAE(**SMALL, code=8, dilations=(1,)),
}


@pytest.mark.parametrize("kind", SAMPLERS)
def test_a_draw_has_more_steps_than_bf16_has(kind):
    sampler = SAMPLERS[kind]().eval()
    noisy = torch.randn(1, 1, 64, 64)
    with torch.autocast("cpu", torch.bfloat16):
        draw = sampler.sample(noisy)[0]
    octaves = draw.abs().unique().log2().floor()  # bf16 has at most 128 values in any
    assert draw.dtype == torch.float32 and int(octaves.unique(return_counts=True)[1].max()) > 256
