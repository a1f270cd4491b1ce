"""The interface of posterior samplers, and consensus images from their draws."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from students.dimensions import per_channel
from students.upscale import Scale, factors

LEARNING_RATE = 2e-3


class PosteriorSampler(nn.Module, ABC):
    """Draws clean images from q(signal | noisy). Input and output are in raw counts.

    Subclasses implement `sample`, and `training_step` if they can be trained. They may set these attributes.

    Attributes:
        out_channels: number of channels of a draw. Default: None, the channels of the noisy image without
            conditions.
        scale: factor from the size of the noisy image to that of a draw, one number or one each for Y and X.
            Default: 1.
        out_names: names of the draws' channels in written files. Default: those of the noisy image, if it has
            as many channels.
        context: neighbouring planes that are further channels of the noisy image, such as "T2", after those
            of the plane that is drawn. `train` sets it and runs store it. Default: none.
        dims: 2 for a sampler of images (Y, X), 3 for one of volumes (Z, Y, X). Default: 2.
        conditions: number of conditions, such as a mask, which are the last channels of the input in their
            own units. `train` sets it and runs store it. Default: 0, which accepts as many as `train` gets.
        isotropic: whether the noise stays the same if it is rotated and mirrored, so that training may
            augment patches by both. Default: True.
        mirrors: if not isotropic, the mirrorings that keep the noise the same, see `NoiseModel.mirrors`.
        free_draws: number of draws that cost no more than one draw. The student learns from as many. Default:
            1.
        logged: further numbers of the last training step for metrics.jsonl, 0-dimensional tensors. Names that
            start with "kl" are in nats per image, and training warns if their sum collapses to zero.
        passes_per_step: number of calls of `training_step` before each update of the weights. `train`
            sets it. Default: 1.
        learning_rate: default learning rate of `train`, for AdamW. Default: 2e-3.
        files: names of constructor arguments that may be files or URLs. They are never read from a model
            file.
    """

    out_channels: int | None = None
    scale: Scale = 1
    out_names: Sequence[str] = ()
    context: str | None = None
    dims: int = 2
    conditions: int = 0
    isotropic: bool = True
    mirrors: Sequence[str] = ()
    free_draws: int = 1
    passes_per_step: int = 1
    learning_rate: float = LEARNING_RATE
    logged: Mapping[str, Tensor] = MappingProxyType({})
    files: tuple[str, ...] = ()

    @abstractmethod
    def sample(self, noisy: Tensor, n: int = 1) -> Tensor:
        """n independent draws of each image: (B, C, *S) -> (n, B, C', *S'), in eval mode, without gradients.

        C' is `out_channels`, and each side of S' is `scale` times that of S.
        """

    def draws(self, noisy: Tensor, n: int) -> Iterator[Tensor]:
        """Yields n draws one at a time, each (B, C', *S'). Override it to share work between the draws."""
        for _ in range(n):
            yield self.sample(noisy)[0]

    def declare(
        self, out_channels: int | None = None, scale: Scale = 1, out_names: Sequence[str] = ()
    ) -> None:
        """Sets the attributes of these names, for constructors. ValueError if they do not match."""
        factors(scale)
        if out_channels is not None and out_channels < 1:
            raise ValueError(f"out_channels: got {out_channels}, must be at least 1")
        if out_names and len(out_names) != out_channels:
            raise ValueError(f"out_names: got {list(out_names)}, must be out_channels={out_channels} names")
        self.out_channels, self.scale, self.out_names = out_channels, scale, tuple(out_names)

    def draw_shape(self, noisy: Sequence[int]) -> tuple[int, ...]:
        """Shape of a draw for noisy images of shape (B, C, *S)."""
        batch, channels, *size = noisy
        enlarged = [
            n * by for n, by in zip(size, (*[1] * (len(size) - 2), *factors(self.scale)), strict=True)
        ]
        return (batch, self.out_channels or channels - self.conditions, *enlarged)

    def split(self, noisy: Tensor) -> tuple[Tensor, Tensor]:
        """Input (B, C + conditions, *S) -> the images (B, C, *S), the conditions (B, conditions, *S)."""
        channels = noisy.shape[1] - self.conditions
        return noisy[:, :channels], noisy[:, channels:]

    def training_images(self, frames: Any) -> Any:
        """Called once before training with the images (N, C, Y, X) in raw counts.

        Returns the array (N, C', Y, X) that patches are cut from; the images themselves by default. Append
        channels here if `sample` needs more than the noisy image, as CachedDraws does.
        """
        return frames

    def prepare(self, noisy: Tensor, mean: Tensor, std: Tensor) -> None:
        """Called once before co-training, with some frames and the statistics of the images, in raw counts.

        noisy: some training frames (N, C, *S). mean, std: of all training frames, each (C, 1, 1), of
        volumes (C, 1, 1, 1); 0 and 1 for conditions. By default nothing is done.
        """

    def training_step(self, noisy: Tensor) -> tuple[Tensor, Tensor]:
        """The sampler's own loss, a scalar, and one draw (B, C', *S') from the same forward pass.

        A sampler that does not override this is frozen, and only the student is trained.
        """
        raise NotImplementedError(f"{type(self).__name__} is a frozen sampler")

    def training_loss(self, noisy: Tensor) -> Tensor:
        """The loss of `training_step` alone. Override it if the draw costs time."""
        return self.training_step(noisy)[0]

    @property
    def trainable(self) -> bool:
        """Whether it can be trained: it has a training step, and weights that are not frozen."""
        has_step = type(self).training_step is not PosteriorSampler.training_step
        return has_step and any(p.requires_grad for p in self.parameters())


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Sets the module to eval mode without gradients, and restores its former mode afterwards."""
    was_training = module.training
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        module.train(was_training)


def draw_statistics(sampler: PosteriorSampler, batches: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and std of each channel of draws, each (C', 1, ...), from one draw of every image.

    batches: noisy images (B, C, H, W) in raw counts, one batch at a time, so that memory does not grow.
    Raises ValueError if a channel of the draws is constant.
    """
    count, total, squares = 0, torch.zeros(1), torch.zeros(1)
    for noisy in batches:
        pixels = sampler.sample(noisy)[0].cpu().double().transpose(0, 1).flatten(1)  # (C', pixels)
        count, total = count + pixels.shape[1], total + pixels.sum(1)
        squares = squares + pixels.square().sum(1)
    mean = total / count
    std = (squares / count - mean.square()).clamp(min=0).sqrt()
    for c in (~(std > 1e-6 * mean.abs())).nonzero().flatten().tolist():
        raise ValueError(
            f"{type(sampler).__name__}: channel {c} of its draws is {float(mean[c]):.4g} everywhere, so "
            "there is nothing to learn; check the sampler, or leave that channel out"
        )
    return per_channel(mean.float(), sampler.dims), per_channel(std.float(), sampler.dims)


def _moments(sampler: PosteriorSampler, noisy: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Mean and sum of squared deviations of n draws; Welford's update keeps memory constant in n."""
    dtype = torch.float32 if noisy.device.type == "mps" else torch.float64  # mps has no float64
    draws = (draw.to(dtype) for draw in sampler.draws(noisy, n))
    mean = next(draws).clone()
    m2 = torch.zeros_like(mean)
    for i, draw in enumerate(draws, start=2):
        delta = draw - mean
        mean += delta / i
        m2 += delta * (draw - mean)
    return mean, m2


def posterior_mean(sampler: PosteriorSampler, noisy: Tensor, n: int = 100) -> Tensor:
    """Mean of n draws (the MMSE estimate, paper, Eq. 6), shaped like one draw."""
    return _moments(sampler, noisy, n)[0].to(noisy.dtype)


def posterior_std(sampler: PosteriorSampler, noisy: Tensor, n: int = 100) -> Tensor:
    """Standard deviation of n >= 2 draws in each pixel (unbiased variance), shaped like one draw."""
    return (_moments(sampler, noisy, n)[1] / (n - 1)).sqrt().to(noisy.dtype)


def posterior_median(sampler: PosteriorSampler, noisy: Tensor, n: int = 100) -> Tensor:
    """Median of n draws in each pixel (the MMAE estimate, paper, Eq. 5). All n draws are in memory."""
    return median(torch.stack(list(sampler.draws(noisy, n))))


def median(draws: Tensor) -> Tensor:
    """Median over the first dimension; for an even number the mean of the middle two, unlike torch.median."""
    ordered, n = draws.sort(dim=0).values, len(draws)  # torch.quantile does not accept 16 million values
    return (ordered[(n - 1) // 2] + ordered[n // 2]) / 2
