"""How the networks do on held-out patches."""

import tempfile
from pathlib import Path

import torch
from torch import Tensor

from distill.denoiser import DirectDenoiser
from distill.hardware import Hardware
from distill.plots.pictures import mosaic
from distill.training.self_supervision import Best
from samplers import PosteriorSampler
from samplers.base import evaluating


@torch.no_grad()
def validate(
    sampler: PosteriorSampler, denoiser: DirectDenoiser, noisy: Tensor, seed: int, preview: Path
) -> dict[str, float]:
    """Losses on held-out patches, with the same random draws each time so that they compare, and
    the student's PSNR against the mean of 8 draws (or the free ones) of the first 16 patches."""
    row = {}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if sampler.trainable:
            with evaluating(sampler):
                row["val_sampler_loss"] = float(sampler.training_step(noisy)[0])
        draws = denoiser.standardize(sampler.sample(noisy, denoiser.loss.min_draws))
        drawn = sampler.sample(noisy[:16], sampler.free_draws if sampler.free_draws > 1 else 8)
    noisy = noisy[:, : len(denoiser.mean)]
    few = noisy[:16]
    with evaluating(denoiser):
        row["val_student_loss"] = float(denoiser.loss(denoiser.predict(noisy), draws))
        denoised, mean = denoiser(few), drawn.mean(dim=0)
    error = (denoised - mean).square().mean()
    row["psnr_to_draws"] = float(20 * torch.log10((mean.max() - mean.min()) / error.sqrt()))
    mosaic(preview, [few, drawn[0], mean, denoised])
    return row


def check_once(
    sampler: PosteriorSampler,
    denoiser: DirectDenoiser,
    noisy: Tensor | None,
    seed: int,
    hardware: Hardware,
    best: Best | None,
) -> None:
    """What training does at a validation, without a trace: for measuring its time."""
    if noisy is not None:
        with hardware.autocast(), tempfile.TemporaryDirectory() as folder:
            validate(sampler, denoiser, noisy, seed, Path(folder) / "preview.png")
    if best:
        best.error(denoiser)
