"""The paper's co-training (section 4) as two modules: the sampler teaches, the student learns.

As modules they can be compiled, spread over processes and profiled.
"""

import torch
from torch import Tensor, nn

from distill.denoiser import DirectDenoiser
from distill.errors import checks_of
from losses import Loss
from samplers import PosteriorSampler


class Teach(nn.Module):
    """noisy (B, C, *S) -> (n draws of each image (n, B, C', *S), the sampler's own loss or None).

    In train mode the first draw is the one that the sampler's ELBO pass made (Figure 2): it costs
    nothing. In eval mode the sampler is frozen and has no loss.
    """

    def __init__(self, sampler: PosteriorSampler, draws: int) -> None:
        super().__init__()
        self.sampler, self.n = sampler, draws

    def forward(self, noisy: Tensor) -> tuple[Tensor, Tensor | None]:
        if not self.sampler.training:
            return self.sampler.sample(noisy, self.n), None
        with checks_of(type(self.sampler).__name__):
            loss, draw = self.sampler.training_step(noisy)
        draws = draw.detach().unsqueeze(0)  # the student's error must not reach the sampler
        if self.n > 1:
            draws = torch.cat([draws, self.sampler.sample(noisy, self.n - 1)])
        return draws, loss


class Learn(nn.Module):
    """noisy (B, C, *S) and its draws (n, B, C', *S) -> the student's distance to them."""

    def __init__(self, denoiser: DirectDenoiser, loss: Loss) -> None:
        super().__init__()
        self.denoiser, self.loss = denoiser, loss

    def forward(self, noisy: Tensor, draws: Tensor) -> Tensor:
        prediction = self.denoiser.predict(noisy[:, : len(self.denoiser.mean)])
        with torch.autocast(noisy.device.type, enabled=False):  # bf16 has 8 bits: too few for a loss
            return self.loss(prediction, self.denoiser.standardize(draws))
