"""Learning the posterior mean from noisy images alone: a part of an image's light predicts the rest.

Whatever two images show the same signal with independent noise, the network that predicts one from the
other under a squared error learns the signal's posterior mean (Lehtinen et al. 2018, arXiv:1803.04189).
Here the two are made of one image, by a noise model that can split it (Monroy et al. 2025,
arXiv:2412.04648). Unlike draws, the parts are not bounded by how good a sampler is.
"""

import copy
import logging
import math

import torch
from torch import Tensor, nn

from distill.denoiser import DirectDenoiser
from distill.errors import UserError
from losses import L2, Loss
from samplers.base import evaluating
from samplers.noise.split import LightSplit, can_be_split, random_share
from students import StabilizedUNet

log = logging.getLogger(__name__)
CHECKED_SHARE, CHECKS = 0.8, 3  # of held-out patches: nearer to the whole image


class SplitRisk(nn.Module):
    """noisy (B, C, H, W) -> error of the student, given a part of the light, on the rest; about 1."""

    def __init__(self, denoiser: DirectDenoiser, light: LightSplit) -> None:
        super().__init__()
        self.denoiser, self.light = denoiser, light

    def forward(self, noisy: Tensor) -> Tensor:
        share = random_share()
        first, second = self.light(noisy, share)
        return self.light.error(self.denoiser.image(first, share), second, noisy, share)

    @torch.no_grad()
    def held_out(self, denoiser: DirectDenoiser, noisy: Tensor, seed: int) -> Tensor:
        """(B,): each patch's squared error on light that the student has not seen, in units of the noise's
        variance; the same splits on every call, so that differences are of the student alone."""
        with torch.random.fork_rng(), evaluating(denoiser):
            torch.manual_seed(seed)
            total = torch.zeros(len(noisy), device=noisy.device)
            for _ in range(CHECKS):
                first, second = self.light(noisy, CHECKED_SHARE)
                total += (denoiser.image(first, CHECKED_SHARE) - second).square().mean((1, 2, 3))
        return total / CHECKS / self.light.variance(noisy).mean()


def split_risk(
    denoiser: DirectDenoiser, light: LightSplit | None, noise_model: nn.Module | None
) -> SplitRisk | None:
    """The risk for a student that knows what share of the light it sees; None for any other, and for a noise
    model that cannot be split or is a guess."""
    if light is None or light.guessed or not (noise_model is None or can_be_split(noise_model)):
        return None
    if not isinstance(denoiser.backbone, StabilizedUNet):
        return None
    return SplitRisk(denoiser, light)


def self_supervised_share(asked: float | None, risk: SplitRisk | None, loss: Loss) -> float:
    """What `train(self_supervised=...)` means for this loss and this noise."""
    possible = risk is not None and isinstance(loss, L2)
    if asked and not possible:
        raise UserError(
            f"self_supervised: got {asked} with the loss {type(loss).__name__}; it takes the loss L2, the "
            "student StabilizedUNet, and noise of single pixels or a fitted CorrelatedNoise; pass 0"
        )
    if asked is None:  # what a model of correlated noise misses would be learned in the end
        return float(possible and risk is not None and not risk.light.correlated)
    return asked


class Best:
    """The student that does best on unseen light of held-out patches; its start is among them."""

    def __init__(self, denoiser: DirectDenoiser, risk: SplitRisk, noisy: Tensor, seed: int) -> None:
        self.risk, self.noisy, self.seed = risk, noisy, seed
        self.start, self.module = copy.deepcopy(denoiser), copy.deepcopy(denoiser)
        self.least = math.inf

    def compare(self, denoiser: DirectDenoiser) -> float:
        """Its error; kept if it is the least so far."""
        if math.isinf(self.least):  # of the start, or of what a stopped run has found
            self.least = self.error(self.module)
        error = self.error(denoiser)
        if error < self.least:
            self.least = error
            self.module.load_state_dict(denoiser.state_dict())
        return error

    def error(self, denoiser: DirectDenoiser) -> float:
        return float(self.risk.held_out(denoiser, self.noisy, self.seed).mean())

    def chosen(self) -> DirectDenoiser:
        """The best of the training, or the start if it is not clearly worse: patches tell only so much."""
        before, after = (
            self.risk.held_out(each, self.noisy, self.seed) for each in (self.start, self.module)
        )
        change = after - before
        error = float(change.std() / len(change) ** 0.5) if len(change) > 1 else 0.0
        better = float(change.mean()) + error < 0
        log.info("error on held-out light: %.4f before training, %.4f after (%+.4f +- %.4f)%s",
                 float(before.mean()), float(after.mean()), float(change.mean()), error,
                 "" if better else "; the student stays what it was")  # fmt: skip
        return (self.module if better else self.start).eval()
