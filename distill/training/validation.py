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
        draws = denoiser.standardize_draws(sampler.sample(noisy, denoiser.loss.min_draws))
        drawn = sampler.sample(noisy[:16], sampler.free_draws if sampler.free_draws > 1 else 8)
    noisy = noisy[:, : len(denoiser.mean)]
    few = noisy[:16]
    with evaluating(denoiser):
        row["val_student_loss"] = float(denoiser.loss(denoiser.predict(noisy), draws))
        denoised, mean = denoiser(few), drawn.mean(dim=0)
    error = (denoised - mean).square().mean()
    row["psnr_to_draws"] = float(20 * torch.log10((mean.max() - mean.min()) / error.sqrt()))
    mosaic(preview, _columns(denoiser, few, [drawn[0], mean, denoised]))
    return row


def _columns(denoiser: DirectDenoiser, noisy: Tensor, outputs: list[Tensor]) -> list[Tensor]:
    """What a preview shows beside each other: where draws are other images than the noisy one, each of their
    channels, and all of them standardized, since they share one grey scale."""
    if not denoiser.reshapes:
        return [noisy, *outputs]
    outputs = [denoiser.standardize_draws(each) for each in outputs]
    channels = [each[:, c : c + 1] for c in range(denoiser.out_channels) for each in outputs]
    return [denoiser.standardize(noisy), *channels]


class Validation:
    """What held-out patches, `noisy`, tell of the networks, each time that training stops to look."""

    def __init__(
        self,
        sampler: PosteriorSampler,
        denoiser: DirectDenoiser,
        noisy: Tensor,
        seed: int,
        hardware: Hardware,
        best: Best | None,
    ) -> None:
        self.sampler, self.denoiser, self.noisy, self.seed = sampler, denoiser, noisy, seed
        self.hardware, self.best = hardware, best

    def __call__(self, preview: Path) -> dict[str, float]:
        """`validate`, and the error on unseen light, by which the best student is kept."""
        row = self._row(preview)
        return row | ({"val_split_error": self.best.compare(self.denoiser)} if self.best else {})

    def once(self) -> None:
        """The same without a trace: for measuring its time."""
        with tempfile.TemporaryDirectory() as folder:
            self._row(Path(folder) / "preview.png")
        if self.best:
            self.best.error(self.denoiser)

    def _row(self, preview: Path) -> dict[str, float]:
        with self.hardware.autocast():
            return validate(self.sampler, self.denoiser, self.noisy, self.seed, preview)
