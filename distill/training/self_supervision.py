"""Learns the posterior mean from noisy images alone: one part of an image's light predicts the rest.

If two images show the same signal with independent noise, a network that predicts one from the other under a
squared error learns the posterior mean of the signal (Lehtinen et al. 2018, arXiv:1803.04189). Here a noise
model splits one image into two such images (Monroy et al. 2025, arXiv:2412.04648). Unlike a student of draws,
this one is not limited by the quality of a sampler.
"""

import copy
import logging
import math

import torch
from torch import Tensor, nn

from distill.denoiser import DirectDenoiser
from distill.errors import UserError
from distill.hardware import forked
from losses import L2, Loss
from samplers import CorrelatedNoise, PosteriorSampler, StabilizedSampler
from samplers.base import evaluating
from samplers.noise.split import LightSplit, can_be_split
from students import StabilizedUNet

log = logging.getLogger(__name__)
CHECKED_SHARE = 0.8  # share of the light that the student sees in validation, close to the whole image
CHECKS = 3  # random splits of each held-out patch
TURNS = 1 / 3, 2 / 3  # of the training: when the sampler takes the weights of the student


class SplitRisk(nn.Module):
    """Error of the student, which sees a part of the light of noisy (B, C, H, W), on the rest; about 1."""

    def __init__(self, denoiser: DirectDenoiser, light: LightSplit) -> None:
        super().__init__()
        self.denoiser, self.light = denoiser, light

    def forward(self, noisy: Tensor) -> Tensor:
        share = self.light.random_share()
        first, second = self.light(noisy, share)
        return self.light.error(self.denoiser.image(first, share), second, noisy, share)

    @torch.no_grad()
    def held_out(self, denoiser: DirectDenoiser, noisy: Tensor, seed: int) -> Tensor:
        """Squared error (B,) of each patch on light that the student does not see, over the noise variance.

        The splits are the same on every call, so that two students differ only by their own errors.
        """
        with forked(noisy.device), evaluating(denoiser):
            torch.manual_seed(seed)
            total = torch.zeros(len(noisy), device=noisy.device)
            for _ in range(CHECKS):
                first, second = self.light(noisy, CHECKED_SHARE)
                total += (denoiser.image(first, CHECKED_SHARE) - second).square().mean((1, 2, 3))
        return total / CHECKS / self.light.variance(noisy).mean()


def split_risk(
    denoiser: DirectDenoiser, light: LightSplit | None, noise_model: nn.Module | None
) -> SplitRisk | None:
    """The risk; None if the light cannot be split well enough, or the student cannot learn from it.

    Correlation that a noise model misses would be the same in both parts, and would be learned. The student
    has to take the share of the light that it sees as an input, as StabilizedUNet does.
    """
    if light is None or light.correlated or not (noise_model is None or can_be_split(noise_model)):
        return None
    if not isinstance(denoiser.backbone, StabilizedUNet):
        return None
    return SplitRisk(denoiser, light)


def self_supervised_share(share: float | None, risk: SplitRisk | None, loss: Loss) -> float:
    """The argument `self_supervised` of `train`, or its default for this loss and this noise."""
    possible = risk is not None and isinstance(loss, L2)
    if share and not possible:
        raise UserError(
            f"self_supervised: got {share} with the loss {type(loss).__name__}; it needs the loss L2, the "
            "student StabilizedUNet, and noise that is independent between pixels; pass 0"
        )
    return float(possible) if share is None else share


def camera_of(
    sampler: PosteriorSampler, denoiser: DirectDenoiser, light: LightSplit | None
) -> LightSplit | None:
    """The camera by which the student sees draws instead of the noisy images, where noise is correlated.

    A student of a sampler that is not trained on these images would be no better than the sampler. Pairs of a
    draw and a new observation of it show what these images look like: a step of expectation maximisation
    (Dempster et al. 1977). Unlike parts of an image's light, they do not share noise that the model misses.
    """
    own = light is not None and light.correlated and light is getattr(sampler, "light", None)
    fits = isinstance(denoiser.backbone, StabilizedUNet) and denoiser.loss.min_draws == 1
    return light if own and fits and not sampler.trainable else None  # other draws are not of the new image


def follower(
    sampler: PosteriorSampler, denoiser: DirectDenoiser, camera: LightSplit | None
) -> StabilizedSampler | None:
    """The sampler if it can follow the student, whose weights its mean network then takes at each of TURNS.

    Each turn is a further step of expectation maximisation. Only for correlated noise whose model was passed:
    what an estimate misses stays in the draws, and grows with every turn.
    """
    if camera is None or not isinstance(sampler, StabilizedSampler) or sampler.noise_model is None:
        return None
    passed = set(sampler.noise_model.modules())  # an independent one is not used where noise is correlated
    known = all(each in passed for each in camera.models if isinstance(each, CorrelatedNoise))
    mean, student = (each.state_dict().values() for each in (sampler.mean, denoiser.backbone))
    alike = [v.shape for v in mean] == [v.shape for v in student]
    return sampler if known and alike and isinstance(denoiser.loss, L2) else None


class Best:
    """The student with the least error on unseen light of held-out patches, among them the initial one."""

    def __init__(self, denoiser: DirectDenoiser, risk: SplitRisk, noisy: Tensor, seed: int) -> None:
        self.risk, self.noisy, self.seed = risk, noisy, seed
        self.start, self.module = copy.deepcopy(denoiser), copy.deepcopy(denoiser)
        self.least = math.inf

    def compare(self, denoiser: DirectDenoiser) -> float:
        """Error of the student, which is stored if it is the best so far."""
        if math.isinf(self.least):  # the initial student, or the best of a run that resumes
            self.least = self.error(self.module)
        error = self.error(denoiser)
        if error < self.least:
            self.least = error
            self.module.load_state_dict(denoiser.state_dict())
        return error

    def error(self, denoiser: DirectDenoiser) -> float:
        """Mean of `SplitRisk.held_out` over the patches."""
        return float(self.risk.held_out(denoiser, self.noisy, self.seed).mean())

    def final(self) -> DirectDenoiser:
        """The best student of the training, or the initial one if the best is not significantly better."""
        before, after = (
            self.risk.held_out(each, self.noisy, self.seed) for each in (self.start, self.module)
        )
        change = after - before
        error = float(change.std() / len(change) ** 0.5) if len(change) > 1 else 0.0
        better = float(change.mean()) + error < 0
        log.info("error on held-out light: %.4f before training, %.4f after (%+.4f +- %.4f)%s",
                 float(before.mean()), float(after.mean()), float(change.mean()), error,
                 "" if better else "; the student stays as it was before")  # fmt: skip
        return (self.module if better else self.start).eval()
