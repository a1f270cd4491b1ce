"""Measures the networks on held-out patches."""

import tempfile
from pathlib import Path

import torch
from torch import Tensor

from distill.denoiser import DirectDenoiser
from distill.hardware import Hardware, forked
from distill.plots.pictures import mosaic
from distill.training.self_supervision import Best
from samplers import PosteriorSampler
from samplers.base import evaluating
from samplers.noise.split import LightSplit


@torch.no_grad()
def validate(
    sampler: PosteriorSampler,
    denoiser: DirectDenoiser,
    noisy: Tensor,
    seed: int,
    preview: Path,
    camera: LightSplit | None = None,
) -> dict[str, float]:
    """Losses on held-out patches, and the student's PSNR with respect to the mean of 8 draws of 16 patches.

    A sampler with more than one free draw gives these instead of 8. Random numbers are the same on every
    call, so that the results can be compared. `preview` is a picture of some of the patches, and `camera`
    that of `Learn`.
    """
    row = {}
    with forked(noisy.device):
        torch.manual_seed(seed)
        if sampler.trainable:
            with evaluating(sampler):
                row["val_sampler_loss"] = float(sampler.training_loss(noisy))
        draws = sampler.sample(noisy, denoiser.loss.min_draws)
        seen = noisy[:, : len(denoiser.mean)] if camera is None else camera.observe(draws[0])
        draws = denoiser.standardize_draws(draws)
        samples = sampler.sample(noisy[:16], sampler.free_draws if sampler.free_draws > 1 else 8)
    few = noisy[:16, : len(denoiser.mean)]
    with evaluating(denoiser):
        row["val_student_loss"] = float(denoiser.loss(denoiser.predict(seen), draws))
        denoised, mean = denoiser(few), samples.mean(dim=0)
    error = (denoised - mean).square().mean()
    row["psnr_to_draws"] = float(20 * torch.log10((mean.max() - mean.min()) / error.sqrt()))
    mosaic(preview, _columns(denoiser, few, [samples[0], mean, denoised]))
    return row


def _columns(denoiser: DirectDenoiser, noisy: Tensor, outputs: list[Tensor]) -> list[Tensor]:
    """The columns of a preview.

    If draws are not shaped like the noisy image, each of their channels has its own columns, and all are
    standardized, because they share one grey scale.
    """
    if not denoiser.reshapes:
        return [noisy, *outputs]
    outputs = [denoiser.standardize_draws(each) for each in outputs]
    channels = [each[:, c : c + 1] for c in range(denoiser.out_channels) for each in outputs]
    return [denoiser.standardize(noisy), *channels]


class Validation:
    """A function that validates the networks on the same held-out patches `noisy` each time."""

    def __init__(
        self,
        sampler: PosteriorSampler,
        denoiser: DirectDenoiser,
        noisy: Tensor,
        seed: int,
        hardware: Hardware,
        best: Best | None,
        camera: LightSplit | None,
    ) -> None:
        self.sampler, self.denoiser, self.noisy, self.seed = sampler, denoiser, noisy, seed
        self.hardware, self.best, self.camera = hardware, best, camera

    def __call__(self, preview: Path) -> dict[str, float]:
        """The metrics of `validate`, and the error on unseen light, which selects the best student."""
        row = self._row(preview)
        return row | ({"val_split_error": self.best.compare(self.denoiser)} if self.best else {})

    def once(self) -> None:
        """The same computations without an effect, to measure their time."""
        with tempfile.TemporaryDirectory() as folder:
            self._row(Path(folder) / "preview.png")
        if self.best:
            self.best.error(self.denoiser)

    def _row(self, preview: Path) -> dict[str, float]:
        with self.hardware.autocast():
            return validate(self.sampler, self.denoiser, self.noisy, self.seed, preview, self.camera)
