"""Compares students of posteriors in closed form with the exact functionals (about 40 minutes of one core).

python benchmarks/functionals.py [wiener] [L2] [L1] [Huber] [Tukey] [Quantiles] [MeanVariance]
                                 [scenes] [draws]
"""

import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import torch
from compare_samplers import QUANTILES, Field, errors
from torch import Tensor, nn

from distill import DirectDenoiser, psnr, train
from losses import L1, L2, EnergyScore, Huber, JointMode, Loss, MeanVariance, Quantiles, Tukey
from samplers import BimodalPixels, LinearGaussianField, PosteriorSampler, SkewedPixels, ThreeScenes
from students import NoiseConditioned, UNet

HUBER, TUKEY = Huber(0.5), Tukey()
LOSSES: dict[str, Loss] = {
    type(loss).__name__: loss for loss in (L2(), L1(), HUBER, TUKEY, Quantiles(), MeanVariance())
}
Posterior = SkewedPixels | BimodalPixels
POSTERIORS: dict[str, Posterior] = {"skewed": SkewedPixels(), "bimodal": BimodalPixels()}
HEADER = f"{'':24}elicited      mean    median      mode"


def distil(
    sampler: PosteriorSampler, noisy: Tensor, student: nn.Module, loss: Loss, steps: int, **settings: Any
) -> DirectDenoiser:
    settings = dict(refine_steps=0, val_fraction=0.0, validate_every=10**6) | settings
    return train(noisy, sampler, student, loss, tempfile.mkdtemp(), steps=steps, **settings).denoiser


def wiener() -> None:
    """The L2 student of a Gaussian field, on larger fields that it never saw (the filter knows that
    a field is periodic, the student does not: on small ones that is worth 0.1 dB to the filter).
    Draws cost next to nothing here, so it learns from 16 of each patch."""
    torch.manual_seed(0)
    field = LinearGaussianField()
    noisy = field.observe(field.prior(64, (128, 128)))
    student = distil(
        field, noisy, UNet(depth=3, filters=16), L2(), 450, patch_size=128, batch_size=4, draws=16
    )
    clean = field.prior(2, (512, 512))
    noisy = field.observe(clean)
    with torch.inference_mode():
        images = {"noisy": noisy, "Wiener filter": field.posterior_mean(noisy), "student": student(noisy)}
    for name, image in images.items():
        print(f"Gaussian field  {name:14} {psnr(image, clean):6.2f} dB", flush=True)


class Pixelwise(nn.Sequential):
    """A student that sees one pixel: enough for posteriors whose pixels are independent."""

    def __init__(self, outputs: int, width: int = 48, in_channels: int = 1) -> None:
        super().__init__(nn.Conv2d(in_channels, width, 1), nn.SiLU(), nn.Conv2d(width, width, 1), nn.SiLU(),
                         nn.Conv2d(width, outputs, 1))  # fmt: skip
        self.in_channels = in_channels


def pixels(name: str, loss: Loss) -> None:
    """Prints how far each map of the student is from what its loss elicits and from mean, median and
    mode: the root mean square over pixels, in percent of the posterior's std."""
    torch.manual_seed(0)
    sampler, noisy = POSTERIORS[name], 100 + 30 * torch.randn(8, 64, 64)
    backbone = Pixelwise(len(loss.outputs))
    student = distil(
        sampler, noisy, backbone, loss, 600, batch_size=2, micro_batch=2, draws=8, student_lr=1e-2
    )
    x = every_brightness()
    exact, std = functionals(sampler, x, student.std.item()), sampler.variance(x).sqrt()
    with torch.no_grad():
        maps = student.maps(x)
    for output, value in maps.items():
        others = [] if output == "std" else [getattr(sampler, each)(x) for each in ("mean", "median", "mode")]
        errors = [((value - each) / std).square().mean().sqrt() for each in (exact[output], *others)]
        figures = "".join(f"{100 * error:8.2f} %" for error in errors)
        print(f"{name:8}{type(loss).__name__:13}{output:6}{figures}", flush=True)


def draws(name: str) -> None:
    """Prints how far the passes of a student that draws are from the posterior: root mean square errors over
    pixels, in percent of the posterior's std, and the dispersion, MSE(1 pass) / MSE(their mean), which is 2
    for draws of the posterior."""
    torch.manual_seed(0)
    sampler, noisy, score = POSTERIORS[name], 100 + 30 * torch.randn(8, 64, 64), EnergyScore(4, windows=(1,))
    backbone = NoiseConditioned(Pixelwise(1, in_channels=2), score.samples, scales=(1,))
    student = distil(
        sampler, noisy, backbone, score, 12000, batch_size=2, micro_batch=2, draws=8, student_lr=1e-2
    )
    x = every_brightness()
    with torch.no_grad():  # 2^17 passes of each pixel, as an image
        images = [student.maps(x.expand(-1, 1, 16, 16)).values() for _ in range(128)]
    passes = torch.cat([image.flatten(1) for maps in images for image in maps], dim=1)
    mean, variance = sampler.mean(x).flatten(), sampler.variance(x).flatten()
    found = {"mean": (passes.mean(1), mean), "std": (passes.std(1), variance.sqrt())}
    for q in (0.05, 0.5, 0.95):
        value = passes.kthvalue(round(q * passes.shape[1]), dim=1).values
        found[f"q{100 * q:02.0f}"] = value, sampler.quantile(x, q).flatten()
    figures = "".join(
        f"  {key} {100 * ((value - exact).square() / variance).mean().sqrt():.2f} %"
        for key, (value, exact) in found.items()
    )
    many = variance.mean() + (found["mean"][0] - mean).square().mean()
    print(f"{name:8}{figures}   dispersion {1 + passes.var(1).mean() / many:.3f}", flush=True)


def field_draws(name: str, network: nn.Module, scales: Sequence[int], **settings: Any) -> None:
    """The same for a Gaussian field, on larger fields that the student never saw. Its posterior's mean and
    deviations are filters of the image and of white noise, so that one filter of both can be exact."""
    torch.manual_seed(0)
    field, score = Field(), EnergyScore(4)
    noisy = field.observe(field.prior(64, (128, 128)))
    backbone = NoiseConditioned(network, score.samples, scales)
    student = distil(field, noisy, backbone, score, patch_size=128, draws=4, **settings)
    noisy = field.observe(field.prior(2, (256, 256)))
    with torch.inference_mode():
        passes = torch.cat([torch.stack([*student.maps(noisy).values()]) for _ in range(100)])
    found = [passes.mean(0), passes.std(0), *(passes.quantile(q, dim=0) for q in QUANTILES)]
    errors(f"field, {name}", field, noisy, found, len(passes))
    variance = field.posterior_std(noisy).square().mean()
    many = variance + (found[0] - field.posterior_mean(noisy)).square().mean() - variance / len(passes)
    print(f"field, {name:8}dispersion {1 + passes.var(0).mean() / many:.3f}", flush=True)


def every_brightness() -> Tensor:
    """(128, 1, 1, 1), noisy pixels of every brightness, as often as in the images."""
    return 100 + 30 * torch.special.ndtri((torch.arange(128) + 0.5) / 128)[:, None, None, None]


def scenes() -> None:
    """Prints how far students of three whole scenes are from the mean, from the modes of single pixels and
    from the joint mode: the root mean square over pixels, in percent of the distance between scenes."""
    sampler, bright = ThreeScenes(), torch.rand(32, 1, 16, 16) < 0.5
    noisy = torch.where(bright, 120.0, 80.0) + 4 * torch.randn(32, 1, 16, 16)
    print(f"{'':21}{'mean':>10}{'mode':>10}{'joint mode':>12}")
    for loss in (L2(), Tukey(min_draws=16), JointMode()):
        torch.manual_seed(0)
        student = distil(
            sampler, noisy, Pixelwise(1), loss, 0, refine_steps=160, patch_size=16, draws=16, student_lr=0.02
        )
        with torch.inference_mode():
            answer = student(noisy)
        errors = [
            (answer - exact(noisy)).square().mean().sqrt() / sampler.separation
            for exact in (sampler.mean, sampler.mode, sampler.joint_mode)
        ]
        figures = "".join(f"{100 * error:8.2f} %" for error in errors)
        print(f"{'scenes':8}{type(loss).__name__:13}{figures}", flush=True)


def functionals(sampler: Posterior, x: Tensor, data_std: float) -> dict[str, Tensor]:
    """Name of a map -> the exact functional of p(signal | x) that its loss elicits, shaped like x."""
    draws = torch.stack([sampler.quantile(x, (i + 0.5) / 1000) for i in range(1000)])
    return {
        "mean": sampler.mean(x),
        "median": sampler.median(x),
        "huber": huber(draws, HUBER.delta * data_std),
        "mode": smoothed_mode(draws, sampler.mode(x), TUKEY.c),
        "q05": sampler.quantile(x, 0.05),
        "q95": sampler.quantile(x, 0.95),
        "std": sampler.variance(x).sqrt(),
    }


def smoothed_mode(draws: Tensor, mode: Tensor, c: float) -> Tensor:
    """Peak of the density smoothed by a triweight kernel of half-width c * 1.4826 * MAD: mean shift."""
    width = c * 1.4826 * (draws - draws.median(dim=0).values).abs().median(dim=0).values
    for _ in range(300):
        weights = (1 - ((draws - mode) / width).square()).clamp_min(0).square()
        mode = (weights * draws).sum(dim=0) / weights.sum(dim=0)
    return mode


def huber(draws: Tensor, delta: float) -> Tensor:
    """Where the clipped residuals average to zero, by bisection."""
    left, right = draws.min(dim=0).values, draws.max(dim=0).values
    for _ in range(40):
        middle = (left + right) / 2
        low = (draws - middle).clamp(-delta, delta).mean(dim=0) > 0
        left, right = torch.where(low, middle, left), torch.where(low, right, middle)
    return middle


def main() -> None:
    chosen = sys.argv[1:] or ["wiener", *LOSSES, "scenes", "draws"]
    if "wiener" in chosen:
        wiener()
    if losses := [LOSSES[each] for each in chosen if each in LOSSES]:
        print(HEADER)
    for name in POSTERIORS:
        for loss in losses:
            pixels(name, loss)
    if "scenes" in chosen:
        scenes()
    if "draws" in chosen:
        for name in POSTERIORS:
            draws(name)
        unet, linear = UNet(4, depth=3, filters=16), nn.Conv2d(2, 1, 25, padding=12, padding_mode="circular")
        field_draws("U-Net", unet, scales=(1, 4, 16), steps=450, batch_size=4)
        field_draws("filter", linear, scales=(1,), steps=300, batch_size=2, student_lr=3e-3)


if __name__ == "__main__":
    main()
