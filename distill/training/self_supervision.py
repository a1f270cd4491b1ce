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
from distill.noise_fitting.line import noise_line
from losses import L2, Loss
from samplers import GaussianNoise, PhotonNoise
from samplers.base import evaluating
from samplers.noise.neighbours import STRONG, neighbour_correlation
from samplers.noise.photons import ring_mean
from students import StabilizedUNet

log = logging.getLogger(__name__)
SHARE = 0.5  # of the light: more leaves a noisier target, less a noisier input
CHECKED_SHARE, CHECKS = 0.8, 3  # of held-out patches: nearer to the whole image
WHITE = 0.1  # correlation of neighbouring pixels' residuals, above which noise is not of single pixels
LINES = 0.2  # its difference between rows and columns; at most 0.1 for noise of single pixels, 0.3 for lines


class SplitRisk(nn.Module):
    """noisy (B, C, H, W) -> error of the student, given a part of the light, on the rest; about 1."""

    photon: Tensor

    def __init__(self, denoiser: DirectDenoiser, noise: list[GaussianNoise | PhotonNoise]) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.noise = noise  # of each channel; it has no weights
        photon = [each.gain or 0.0 for each in noise]
        self.register_buffer("photon", torch.tensor(photon)[:, None, None])

    def forward(self, noisy: Tensor) -> Tensor:
        first, second = self.split(noisy, SHARE)
        near = ring_mean(noisy)  # not the pixel itself, whose noise a weight must not know
        variance = torch.cat([each.variance(near[:, [c]]) for c, each in enumerate(self.noise)], dim=1)
        weight = (variance + self.photon).rsqrt()  # between PSNR's weights, and those of the likelihood
        error = (self.denoiser.image(first, SHARE) - second).square()
        return (weight * error).mean() / (weight * variance).mean() * (1 - SHARE)

    def split(self, noisy: Tensor, share: float) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            parts = [each.split(noisy[:, [c]], share) for c, each in enumerate(self.noise)]
        first, second = (torch.cat(part, dim=1) for part in zip(*parts, strict=True))
        return first, second

    @torch.no_grad()
    def held_out(self, denoiser: DirectDenoiser, noisy: Tensor, seed: int) -> Tensor:
        """(B,): each patch's squared error on light that the student has not seen, in units of the noise's
        variance; the same splits on every call, so that differences are of the student alone."""
        with torch.random.fork_rng(), evaluating(denoiser):
            torch.manual_seed(seed)
            total = torch.zeros(len(noisy), device=noisy.device)
            for _ in range(CHECKS):
                first, second = self.split(noisy, CHECKED_SHARE)
                total += (denoiser.image(first, CHECKED_SHARE) - second).square().mean((1, 2, 3))
        variance = torch.cat([each.variance(noisy[:, [c]]) for c, each in enumerate(self.noise)], dim=1)
        return total / CHECKS / variance.mean()


def split_risk(denoiser: DirectDenoiser, frames: Tensor, noise_model: nn.Module | None) -> SplitRisk | None:
    """The risk for a student that knows what share of the light it sees; None where it would be wrong: for
    noise that is correlated between pixels, or a noise model that cannot be split.

    frames: noisy frames (N, C, H, W) in raw counts, on the student's device. Their noise law is fitted beside
    what the shipped weights make of them: those of the student may be random, or of other images.
    """
    if not isinstance(denoiser.backbone, StabilizedUNet):
        return None
    if noise_model is not None and not isinstance(noise_model, GaussianNoise | PhotonNoise):
        return None
    all_frames, frames = frames, frames[:2]
    integers = bool((frames == frames.round()).all())
    denoised = _first_answer(denoiser, frames)
    gain, offset = (v.flatten().tolist() for v in noise_line(frames.cpu(), noise_model))
    channels, step, noise = frames.shape[1], 1.0 if integers else None, []
    for c in range(channels):
        y, s = frames[:, [c]], denoised[:, [c]]
        if isinstance(noise_model, PhotonNoise) and channels == 1:  # several rarely share one
            model = noise_model
        elif gain[c] * float(s.std()) > 1e-3 * (gain[c] * float(s.mean()) + offset[c]):
            model = PhotonNoise.fit(y, s, gain[c], offset[c], step)
        else:
            model = GaussianNoise(max(gain[c] * float(s.mean()) + offset[c], 1e-12) ** 0.5)
        if _correlated(all_frames[:, [c]], (y - s) / model.variance(s).sqrt()):
            log.warning("the noise of neighbouring pixels is correlated: the student learns from draws "
                        "alone; for lines or patterns use HDN3-6 or JointNoiseVAE")  # fmt: skip
            return None
        noise.append(model)
    return SplitRisk(denoiser, noise).to(frames.device)


@torch.no_grad()
def _first_answer(denoiser: DirectDenoiser, frames: Tensor) -> Tensor:
    """The frames denoised by the shipped weights, on the student's noise line."""
    student = StabilizedUNet(frames.shape[1], frames.shape[1])
    student.load_pretrained()
    shipped = DirectDenoiser(student, L2(), channels=frames.shape[1]).to(frames.device)
    shipped.prepare(denoiser.mean, denoiser.std)
    student.load_state_dict(dict(denoiser.backbone.named_buffers()), strict=False)
    return shipped.eval().image(frames)


def self_supervised_share(asked: float | None, risk: SplitRisk | None, loss: Loss) -> float:
    """What `train(self_supervised=...)` means for this loss and this noise."""
    if asked is not None and not 0 <= asked <= 1:
        raise UserError(f"self_supervised: got {asked}, must be from 0 to 1")
    possible = risk is not None and isinstance(loss, L2)
    if asked and not possible:
        raise UserError(
            f"self_supervised: got {asked} with the loss {type(loss).__name__}; it takes the loss L2, the "
            "student StabilizedUNet, and noise of single pixels with a Gaussian or photon noise model; pass 0"
        )
    return float(possible) if asked is None else asked


class Best:
    """The student that does best on unseen light of held-out patches; its start is among them."""

    def __init__(self, denoiser: DirectDenoiser, risk: SplitRisk, noisy: Tensor, seed: int) -> None:
        self.risk, self.noisy, self.seed = risk, noisy, seed
        self.start, self.module = copy.deepcopy(denoiser), copy.deepcopy(denoiser)
        self.least = math.inf

    def compare(self, denoiser: DirectDenoiser) -> float:
        """Its error; kept if it is the least so far."""
        if math.isinf(self.least):  # of the start, or of what a stopped run has found
            self.least = self._error(self.module)
        error = self._error(denoiser)
        if error < self.least:
            self.least = error
            self.module.load_state_dict(denoiser.state_dict())
        return error

    def _error(self, denoiser: DirectDenoiser) -> float:
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


def _correlated(noisy: Tensor, residual: Tensor) -> bool:
    """Lines show in the residual, along them or as a difference between rows and columns. Blurred noise stays
    in the image, but shows in the frames."""
    residual = residual.clamp(-3, 3)  # a pixel where the noise law is wrong must not decide
    residual = residual - residual.mean()
    along = [
        (residual[..., 1:] * residual[..., :-1]).mean(),
        (residual[..., 1:, :] * residual[..., :-1, :]).mean(),
    ]
    columns, rows = (float(each / residual.square().mean()) for each in along)
    if max(columns, rows) > WHITE or abs(columns - rows) > LINES:
        return True
    try:
        return max(neighbour_correlation(noisy.cpu())) > STRONG
    except ValueError:  # too small to tell
        return False
