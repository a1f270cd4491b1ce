"""The artefact that users keep: raw counts in, denoised raw counts out, one pass."""

import torch
from torch import Tensor, nn

from distill.errors import UserError
from losses import Loss
from students.padding import crop, pad_to_multiple


class DirectDenoiser(nn.Module):
    """A student backbone with its standardization, its padding and the names of its outputs.

    backbone: any module (B, C, *S) -> (B, len(loss.outputs) * C, *S) on standardized images. If it
    needs sizes that are multiples of a number, it says so in an attribute `multiple`.
    """

    mean: Tensor
    std: Tensor
    spread: Tensor

    def __init__(self, backbone: nn.Module, loss: Loss, channels: int = 1) -> None:
        super().__init__()
        self.backbone, self.loss, self.channels = backbone, loss, channels
        self.register_buffer("mean", torch.zeros(channels, 1, 1))
        self.register_buffer("std", torch.ones(channels, 1, 1))
        self.register_buffer("spread", torch.ones(()))  # what `calibrate` found

    def prepare(self, mean: Tensor, std: Tensor) -> None:
        """The training data's mean and std in raw counts, each (C, 1, 1)."""
        self.mean.copy_(mean)
        self.std.copy_(std)

    def standardize(self, counts: Tensor) -> Tensor:
        return (counts - self.mean) / self.std

    def predict(self, noisy: Tensor, share: float = 1.0) -> Tensor:
        """Raw counts (B, C, *S) -> the backbone's standardized output (B, K, *S), what losses see.

        share: of the light that the image was made with, for backbones that take it (StabilizedUNet).
        """
        size = noisy.shape[2:]
        padded = pad_to_multiple(self.standardize(noisy), getattr(self.backbone, "multiple", 1))
        if padded.ndim == 4:
            padded = padded.contiguous(memory_format=torch.channels_last)
        answer = self.backbone(padded) if share == 1.0 else self.backbone(padded, share)
        return crop(answer.float(), size)

    def image(self, noisy: Tensor, share: float = 1.0) -> Tensor:
        """Raw counts (B, C, *S) -> the central output image (B, C, *S) in raw counts; see `predict`."""
        return next(iter(self.loss.maps(self.predict(noisy, share)).values())) * self.std + self.mean

    def maps(self, noisy: Tensor) -> dict[str, Tensor]:
        """Raw counts (B, C, *S) -> every named output image (B, C, *S) in raw counts."""
        prediction, outputs = self.predict(noisy), self.loss.outputs
        if prediction.shape[1] != len(outputs) * self.channels:  # of a file that others made
            raise UserError(
                f"the student gives {prediction.shape[1]} images, but its loss means {', '.join(outputs)} of "
                f"{self.channels} channels; pass another run, or retrain this one"
            )
        maps = self.loss.maps(prediction)
        centre = next(iter(maps.values()))
        return {
            name: value * self.std * self.spread
            if name == "std"
            else (centre + (value - centre) * self.spread) * self.std + self.mean
            for name, value in maps.items()
        }

    def forward(self, noisy: Tensor) -> Tensor:
        """Raw counts (B, C, *S) -> the central output image (B, C, *S) in raw counts."""
        return self.image(noisy)
