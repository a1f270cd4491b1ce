"""Splits one image into two with independent noise, which makes it possible to learn without clean images."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samplers.noise.channels import ChannelNoise
from samplers.noise.correlated import CorrelatedNoise, wide_mean
from samplers.noise.crosstalk import LARGEST, CrosstalkNoise
from samplers.noise.gaussian import GaussianNoise
from samplers.noise.line import lines, noise_line
from samplers.noise.neighbours import STRONG, neighbour_correlation
from samplers.noise.photons import PhotonNoise, ring_mean
from students.anscombe import anscombe
from students.hot_pixels import fill_hot_pixels
from students.stabilized import LAGS, StabilizedUNet

log = logging.getLogger(__name__)
SHARES = 0.5, 0.7  # range of the light's share in the input; the whole image has more, the rest shows errors
FAR = 30.0  # standard deviations beyond which a deviation is not noise, and counts linearly
WHITE = 0.1  # correlation between the residuals of neighbouring pixels above which noise is correlated
WORTH = 0.06  # correlation of neighbours below which a split of independent pixels costs less than 0.05 dB
QUIET = 0.5  # std of residuals, in that of the noise, below which they are the errors of the denoiser
LINES = 0.2  # difference of that between rows and columns: at most 0.1 for independent pixels, 0.3 for lines
SPIKE = 30.0  # standard deviations of the noise of dark pixels, more than bright ones have
MOST = 0.6  # of the variance of an image, beyond which correlated noise may be a texture
FLOOR = 0.4  # power at the highest frequencies, in that at 0.7 of them: white noise has 1, blurred noise 0
REPEATS = "it was measured by the differences of frames, which show the same field"
Splittable = GaussianNoise | PhotonNoise
SHIPPED = (
    "it was estimated from the images; a noise model fitted to repeats or dark frames is more exact "
    "(distill noise-model fit --kind correlated)"
)


class LightSplit(nn.Module):
    """Splits noisy images (B, C, H, W) into one with a share of the light and one with the rest.

    Both are in raw counts, with the brightness of the whole image and independent noise, and without hot
    pixels.

    Args:
        models: noise model of each channel.
        line: (gain, offset), each (C, 1, 1), if it differs from that of the models. Default: that of the
            models.
    """

    photon: Tensor

    def __init__(
        self, models: Sequence[Splittable | CrosstalkNoise], line: tuple[Tensor, Tensor] | None = None
    ) -> None:
        super().__init__()
        self.noise = ChannelNoise(models)
        self.line = line or lines([m.white if isinstance(m, CrosstalkNoise) else m for m in models])
        self.correlated = any(isinstance(each, CorrelatedNoise) for each in models)
        photon = [float(each.gain or 0.0) for each in models]
        self.register_buffer("photon", torch.tensor(photon)[:, None, None], persistent=False)

    @property
    def correlation(self) -> Tensor | None:
        """Correlation of each channel's noise at LAGS, (C, len(LAGS)); None if all pixels are independent."""
        return torch.stack([_at_lags(each) for each in self.models]) if self.correlated else None

    @property
    def models(self) -> Sequence[Splittable | CrosstalkNoise]:
        return cast(Sequence[Splittable | CrosstalkNoise], self.noise.models)

    @classmethod
    @torch.no_grad()
    def fit(cls, noisy: Tensor, noise_model: nn.Module | None = None, advice: str = SHIPPED) -> LightSplit:
        """Estimates the noise of frames, with the help of the shipped weights, which denoise them.

        Args:
            noisy: noisy frames (N, C, H, W) in raw counts.
            noise_model: noise model that can be split and whose line is known, or a ChannelNoise of such
                models. Others are ignored, and so is a model of independent pixels if the noise of
                neighbouring pixels is correlated. Default: none.
            advice: end of the warning about correlated noise.
        """
        models = _of_each_channel(noise_model, noisy.shape[1])
        laws = [_law(noisy[:, [c]], model, advice) for c, model in enumerate(models)]
        light = cls([law for law, _ in laws])
        if not light.correlated:
            gains, offsets = zip(*(line for _, line in laws), strict=True)
            light.line = torch.cat(gains), torch.cat(offsets)
        filled = (_without_hot_pixels(noisy, *light.line) != noisy).float().mean(0) > 0.5  # of the frames
        if count := int(filled.sum()):
            log.warning("%d hot or dead pixel%s: the networks see a neighbour's value instead", count,
                        "s"[: count > 1])  # fmt: skip
        return light

    @torch.no_grad()
    def forward(self, noisy: Tensor, share: float) -> tuple[Tensor, Tensor]:
        # In both parts, or the one that shows the errors would teach to expect them.
        noisy = _without_hot_pixels(noisy, *self.line)
        parts = [each.split(noisy[:, [c]], share) for c, each in enumerate(self.models)]
        first, second = (torch.cat(part, dim=1) for part in zip(*parts, strict=True))
        return first, second

    @torch.no_grad()
    def observe(self, signal: Tensor) -> Tensor:
        """Draws an observation of a signal (B, C, H, W) by the whole light."""
        return self.noise.sample(signal)

    def random_share(self) -> float:
        """Share of the light that networks see in a training step, random so that they learn what more gives.

        Always half if noise is correlated. Then its model is an approximation, and the parts are the less
        independent the more their shares differ.
        """
        if self.correlated:
            return 0.5
        if not torch.compiler.is_compiling():  # then it is not imported, which takes seconds
            return _uniform()
        # Outside the compiled graph, because the number changes with every step.
        return cast(Callable[[], float], torch.compiler.disable(_uniform))()

    def variance(self, signal: Tensor) -> Tensor:
        """Variance of the whole light's noise at a signal, (B, C, H, W), in counts squared."""
        return torch.cat([each.variance(signal[:, [c]]) for c, each in enumerate(self.models)], dim=1)

    def error(self, answer: Tensor, second: Tensor, noisy: Tensor, share: float) -> Tensor:
        """Weighted squared error of an answer from the first part against the second part; about 1."""
        local = wide_mean(noisy) if self.correlated else ring_mean(noisy)
        variance = self.variance(local)  # a weight must not depend on the noise of the pixel itself
        weight = (variance + self.photon).rsqrt()  # between the weights of PSNR and of the likelihood
        far = FAR * (variance / (1 - share)).sqrt()  # a hot pixel must not outweigh all others
        error = F.huber_loss(answer / far, second / far, reduction="none") * 2 * far.square()
        return (weight * error).mean() / (weight * variance).mean() * (1 - share)


def _uniform() -> float:
    return float(torch.empty(()).uniform_(*SHARES))


def can_be_split(noise_model: nn.Module | None) -> bool:
    models = noise_model.models if isinstance(noise_model, ChannelNoise) else [noise_model]
    return all(isinstance(each, Splittable) for each in models)


def _of_each_channel(noise_model: nn.Module | None, channels: int) -> list[Splittable | None]:
    """The noise model of each channel; None if it has to be estimated."""
    usable = noise_model is not None and can_be_split(noise_model)
    if usable and isinstance(noise_model, ChannelNoise):
        return list(cast(Sequence[Splittable], noise_model.of(channels)))
    if usable and channels == 1:
        return [cast(Splittable, noise_model)]
    if usable:
        log.warning("one noise model for %d channels is not used, because channels rarely share one: each is "
                    "estimated; fit a model to all channels (distill noise-model fit)", channels)  # fmt: skip
    return [None] * channels


def _law(
    noisy: Tensor, model: Splittable | None, advice: str
) -> tuple[Splittable | CrosstalkNoise, tuple[Tensor, Tensor]]:
    """(noise model, line) of one channel, from frames (N, 1, H, W)."""
    if isinstance(model, CorrelatedNoise):
        return model, lines([model])
    line = noise_line(_without_spikes(noisy).cpu(), model)
    filled = _without_hot_pixels(noisy, *line)
    if not filled.equal(noisy):
        noisy, line = filled, noise_line(filled.cpu(), model)
    gain, offset = (v[0] for v in line)
    denoised = _shipped(noisy, gain, offset).denoise(noisy[:2])
    variance = float(gain * denoised.mean() + offset)
    if isinstance(model, PhotonNoise):
        white: Splittable = model
    elif float(gain * denoised.std()) > 1e-3 * variance:
        step = 1.0 if bool((noisy == noisy.round()).all()) else None
        white = PhotonNoise.fit(noisy[:2], denoised, float(gain), float(offset), step)
    else:
        white = GaussianNoise(max(variance, 1e-12) ** 0.5)
    near, residual = _neighbours(noisy), (noisy[:2] - denoised) / white.variance(denoised).sqrt()
    if max(near) <= STRONG and not _has_lines(residual):
        worth = WORTH <= max(map(abs, near)) <= LARGEST
        return (CrosstalkNoise(white, *near) if worth else white), line
    few = noisy[:4]

    def denoise(noise: GaussianNoise) -> Tensor:
        known = noise.at(LAGS) if isinstance(noise, CorrelatedNoise) else torch.zeros(len(LAGS))
        return _shipped(noisy, *lines([noise]), known[None]).denoise(few)

    estimate = CorrelatedNoise.from_denoised(few, denoise)
    noise = estimate.or_from_repeats(few, denoise)
    if noise is estimate and _is_texture(few, noise):
        return white, line
    advice = advice if noise is estimate else REPEATS
    log.warning("the noise of neighbouring pixels is correlated (%.2f along y, %.2f along x, std %.3g): %s",
                *noise.neighbours, float(noise.variance(noisy.mean()).sqrt()), advice)  # fmt: skip
    return noise.to(noisy.device), line


def _without_hot_pixels(noisy: Tensor, gain: Tensor, offset: Tensor) -> Tensor:
    """Frames (N, C, H, W) whose noise has a line of gain and offset, each (C, 1, 1)."""
    gain, offset = gain.to(noisy), offset.to(noisy)
    flat = noisy / offset.clamp(min=1e-12).sqrt()
    return fill_hot_pixels(noisy, torch.where(gain > 0, anscombe(noisy, gain.clamp(min=1e-12), offset), flat))


def _without_spikes(noisy: Tensor) -> Tensor:
    """Without the worst of the hot pixels, from which a noise line would be off."""
    steps = (noisy[..., 1:] - noisy[..., :-1]).abs().flatten()
    # The std, if a half of the pixels is noise alone.
    scale = 1.05 * steps[:: len(steps) // 2**22 + 1].median()
    return fill_hot_pixels(noisy, noisy / scale, jump=SPIKE) if scale > 0 else noisy


def _at_lags(model: nn.Module) -> Tensor:
    if isinstance(model, CorrelatedNoise):
        return model.at(LAGS)
    return torch.tensor([float(lag == (0, 0)) for lag in LAGS])


def _shipped(
    noisy: Tensor, gain: Tensor, offset: Tensor, correlation: Tensor | None = None
) -> StabilizedUNet:
    """A StabilizedUNet with the shipped weights, prepared for one channel (N, 1, H, W)."""
    student = StabilizedUNet().to(noisy.device)
    mean, std, gain, offset = (v.view(1, 1, 1).to(noisy) for v in (noisy.mean(), noisy.std(), gain, offset))
    student.prepare(noisy, mean, std, gain, offset, correlation)
    student.load_pretrained()
    return student.eval()


def _has_lines(residual: Tensor) -> bool:
    """Whether noise has lines. They stay in the residual of a denoiser.

    They show as a correlation along them or as a difference between rows and columns. Blurred noise stays in
    the denoised image, but shows in the frames (`_neighbours`).
    """
    near = residual.abs() < 4  # pixels with a wrong noise law, or near a hot pixel, must not decide
    residual = torch.where(near, residual - residual[near].mean(), 0.0)
    if float(residual.std()) < QUIET:  # as where nearly all pixels are dark and have no noise at all
        return False
    columns = float((residual[..., 1:] * residual[..., :-1]).mean() / residual.square().mean())
    rows = float((residual[..., 1:, :] * residual[..., :-1, :]).mean() / residual.square().mean())
    return max(columns, rows) > WHITE or abs(columns - rows) > LINES


def _is_texture(noisy: Tensor, noise: CorrelatedNoise) -> bool:
    """Whether what was taken for correlated noise is rather a texture that fills the image.

    It is most of the image, is correlated in all directions, and lies on a floor of white noise, which
    blurred or interpolated noise has lost.
    """
    if min(noise.neighbours) < STRONG or noise.variance(noisy.mean()) < MOST * noisy.var():
        return False
    side = min(noisy.shape[-2:])
    window = torch.hann_window(side, device=noisy.device)
    square = (noisy[..., :side, :side] - noisy.mean()) * window * window[:, None]
    power = torch.fft.fft2(square).abs().square().mean((0, 1))
    frequency = 2 * torch.fft.fftfreq(side, device=noisy.device).abs()  # 1 is Nyquist's
    low, high = ((a <= frequency) & (frequency <= b) for a, b in ((0.625, 0.75), (0.875, 1.0)))
    return bool(power[high][:, high].mean() > FLOOR * power[low][:, low].mean())


def _neighbours(noisy: Tensor) -> tuple[float, float]:
    """`neighbour_correlation` of the frames; 0 if they are too small for an estimate."""
    try:
        return neighbour_correlation(noisy.cpu())
    except ValueError:
        return 0.0, 0.0
