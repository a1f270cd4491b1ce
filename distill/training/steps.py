"""The co-training of the paper (section 4) as two modules: the sampler teaches, and the student learns.

As modules they can be compiled and profiled.
"""

import torch
from torch import Tensor, nn

from distill.denoiser import DirectDenoiser
from distill.errors import checks_of
from distill.training.self_supervision import SplitRisk
from losses import Loss
from samplers import PosteriorSampler
from samplers.noise.split import LightSplit


class Teach(nn.Module):
    """noisy (B, C, *S) -> (n draws of each image (n, B, C', *S'), the sampler's own loss or None).

    In train mode the first draw comes from the sampler's own ELBO pass (Figure 2) and costs nothing more. In
    eval mode the sampler is frozen and has no loss. With draws=0 the first result is None.
    """

    def __init__(self, sampler: PosteriorSampler, draws: int) -> None:
        super().__init__()
        self.sampler, self.n = sampler, draws

    def forward(self, noisy: Tensor) -> tuple[Tensor | None, Tensor | None]:
        if not self.sampler.training:
            return (self.sampler.sample(noisy, self.n) if self.n else None), None
        with checks_of(type(self.sampler).__name__):
            if not self.n:
                return None, self.sampler.training_loss(noisy)
            loss, draw = self.sampler.training_step(noisy)
        draws = draw.detach().unsqueeze(0)  # the student's error must not reach the sampler
        if self.n > 1:
            draws = torch.cat([draws, self.sampler.sample(noisy, self.n - 1)])
        return draws, loss


class Learn(nn.Module):
    """noisy (B, C, *S) and its draws (n, B, C', *S') -> distance of the student's prediction to the draws.

    self_supervised: share of the loss that is the error on a part of the image's own light instead.
    camera: if passed, the student sees the first draw as this camera observes it, not the noisy image.
    """

    def __init__(
        self,
        denoiser: DirectDenoiser,
        loss: Loss,
        risk: SplitRisk | None = None,
        self_supervised: float = 0.0,
        camera: LightSplit | None = None,
    ) -> None:
        super().__init__()
        self.denoiser, self.loss, self.risk, self.self_supervised = denoiser, loss, risk, self_supervised
        self.camera = camera

    def forward(self, noisy: Tensor, draws: Tensor | None) -> Tensor:
        noisy = noisy[:, : len(self.denoiser.mean)]
        own = self.risk(noisy) if self.risk is not None and self.self_supervised else noisy.new_zeros(())
        if draws is None:
            return own
        if self.camera is not None:
            draws = draws[:1]
            noisy = self.camera.observe(draws[0])
        prediction = self.denoiser.predict(noisy)
        with torch.autocast(
            noisy.device.type, enabled=False
        ):  # bf16 has 8 significant bits, too few for a loss
            distance = self.loss(prediction, self.denoiser.standardize_draws(draws))
        return (1 - self.self_supervised) * distance + self.self_supervised * own if self.risk else distance
