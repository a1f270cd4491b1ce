"""The denoiser that training produces: raw counts in, denoised raw counts out, in one pass."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from distill.errors import UserError
from distill.images.context import plane_count
from losses import Loss
from students.dimensions import as_channels_last, per_channel
from students.padding import crop, in_a_graph, pad_to_multiple
from students.upscale import Scale, factors


class DirectDenoiser(nn.Module):
    """A student network with its standardization, its padding and the names of its outputs.

    Outputs with the same channels and size as the images share their mean and std. Others have their own.

    Args:
        backbone: module (B, C, *S) -> (B, len(loss.outputs) * C', *S') on standardized images. If the sizes
            S have to be multiples of a number, this number is its attribute `multiple`.
        loss: loss of the training, which names and computes the output images.
        channels: number C of input channels: those of the plane, then of its context, then the conditions.
        out_channels: number C' of channels of each output image. Default: those of the plane.
        scale: factor from S to S', one number or one each for Y and X.
        out_names: names of the C' channels. Default: none.
        context: neighbouring planes among the C channels, such as "T2", see `train`. Default: none.
        conditions: number of conditions among the C channels, such as a mask. They are not standardized.
        dims: 2 if S are the sides of images, 3 for volumes. Default: the backbone's attribute `dims`, or 2.

    Raises:
        UserError: if the number of out_names is not out_channels.
    """

    mean: Tensor
    std: Tensor
    spread: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        loss: Loss,
        channels: int = 1,
        out_channels: int | None = None,
        scale: Scale = 1,
        out_names: Sequence[str] = (),
        context: str | None = None,
        conditions: int = 0,
        dims: int | None = None,
    ) -> None:
        super().__init__()
        self.dims = int(getattr(backbone, "dims", 2)) if dims is None else dims
        self.backbone, self.loss, self.channels, self.context = backbone, loss, channels, context
        self.conditions = conditions
        self.plane_channels = (channels - conditions) // plane_count(context)
        self.out_channels, self.scale = out_channels or self.plane_channels, factors(scale)
        self.out_names = tuple(out_names)
        if self.out_names and len(self.out_names) != self.out_channels:
            raise UserError(f"out_names: got {list(out_names)}, must be {self.out_channels} names, or none")
        ones = [1] * self.dims
        self.register_buffer("mean", torch.zeros(channels, *ones))
        self.register_buffer("std", torch.ones(channels, *ones))
        self.register_buffer("spread", torch.ones(()))  # factor that `calibrate` sets
        self.reshapes = self.out_channels != self.plane_channels or self.scale != (1, 1)
        if self.reshapes:
            self.register_buffer("own_mean", torch.zeros(self.out_channels, *ones))
            self.register_buffer("own_std", torch.ones(self.out_channels, *ones))

    def prepare(self, mean: Tensor, std: Tensor) -> None:
        """Sets the mean and std of the images in raw counts, each (C, 1, ...); 0 and 1 for conditions."""
        self.mean.copy_(per_channel(mean, self.dims))
        self.std.copy_(per_channel(std, self.dims))

    def prepare_outputs(self, mean: Tensor, std: Tensor) -> None:
        """Sets the mean and std in raw counts, each (C', 1, ...), for outputs of another shape."""
        self.out_mean.copy_(mean)
        self.out_std.copy_(std)

    @property
    def out_mean(self) -> Tensor:
        return self.get_buffer("own_mean") if self.reshapes else self.plane(self.mean, dim=0)

    @property
    def out_std(self) -> Tensor:
        return self.get_buffer("own_std") if self.reshapes else self.plane(self.std, dim=0)

    def plane(self, noisy: Tensor, dim: int = 1) -> Tensor:
        """The channels along `dim` of the denoised plane, without those of its context and conditions."""
        return noisy.narrow(dim, 0, self.plane_channels) if self.context or self.conditions else noisy

    def standardize(self, counts: Tensor) -> Tensor:
        """Raw counts -> the units of the backbone's input."""
        return (counts - self.mean) / self.std

    def standardize_draws(self, counts: Tensor) -> Tensor:
        """Raw counts -> the units of the backbone's output."""
        return (counts - self.out_mean) / self.out_std

    def out_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of each output image for images of shape (..., C, *S)."""
        *lead, _ = shape[: -self.dims]
        *depth, height, width = shape[-self.dims :]
        return (*lead, self.out_channels, *depth, height * self.scale[0], width * self.scale[1])

    def predict(self, noisy: Tensor, share: float = 1.0) -> Tensor:
        """Raw counts (B, C, *S) -> the backbone's standardized output (B, K, *S'), the input of losses.

        share: fraction of the light that the image contains, for backbones that use it (StabilizedUNet).
        """
        size: Sequence[int] = noisy.shape[2:]
        padded = pad_to_multiple(self.standardize(noisy), getattr(self.backbone, "multiple", 1))
        padded = as_channels_last(padded)
        output = self.backbone(padded) if share == 1.0 else self.backbone(padded, share)
        if self.scale != (1, 1):
            if not in_a_graph(padded):
                self._check_size(output, padded)
            size = [n * by for n, by in zip(size, self.scale, strict=True)]
        return crop(output.float(), size)

    def _check_size(self, output: Tensor, padded: Tensor) -> None:
        expected = self.out_shape(padded.shape)[2:]
        if output.shape[2:] != expected:
            raise UserError(
                f"{type(self.backbone).__name__}: gives images of {tuple(output.shape[2:])} pixels for "
                f"{tuple(padded.shape[2:])}, but scale {self.scale} needs {expected}; set its scale to "
                f"{list(self.scale)}"
            )

    def image(self, noisy: Tensor, share: float = 1.0) -> Tensor:
        """Raw counts (B, C, *S) -> the central output image (B, C', *S') in raw counts; see `predict`."""
        return next(iter(self.loss.maps(self.predict(noisy, share)).values())) * self.out_std + self.out_mean

    def maps(self, noisy: Tensor) -> dict[str, Tensor]:
        """Raw counts (B, C, *S) -> every named output image (B, C', *S') in raw counts."""
        prediction, outputs = self.predict(noisy), self.loss.outputs
        if prediction.shape[1] != len(outputs) * self.out_channels:  # possible in a damaged or foreign file
            raise UserError(
                f"the student gives {prediction.shape[1]} images, but its loss expects "
                f"{', '.join(outputs)} of {self.out_channels} channels; pass another run, or retrain this one"
            )
        maps = self.loss.maps(prediction)
        centre = next(iter(maps.values()))
        return {
            name: value * self.out_std * self.spread
            if name == "std"
            else (centre + (value - centre) * self.spread) * self.out_std + self.out_mean
            for name, value in maps.items()
        }

    def forward(self, noisy: Tensor) -> Tensor:
        """Raw counts (B, C, *S) -> the central output image (B, C', *S') in raw counts."""
        return self.image(noisy)
