"""A posterior sampler, and the consensus images that averaging its draws gives."""

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
    """Draws clean images from q(signal | noisy). Raw counts in, raw counts out.

    out_channels: channels of a draw. None: as many as the noisy image has, without conditions.
    scale: how many times larger than the noisy image a draw is: 2, or one number each for Y and X.
    out_names: of the draws' channels, for the files that are written. Default: those of the noisy image, if
        it has as many.
    context: which neighbouring planes it sees too, such as "T2": further channels of the noisy image, after
        those of the plane that it draws. `train` sets it, and runs keep it.
    dims: 2 if it draws images (Y, X), 3 if it draws volumes (Z, Y, X), whose planes are seen together.
    conditions: how many maps it sees beside the noisy image, such as a mask: the last channels of what it is
        given, in their own units. 0 takes as many as `train` is given, and runs keep that.
    isotropic: whether the noise looks the same turned and mirrored, so that training may do both.
    mirrors: if not, the mirrorings that keep it the same, as `NoiseModel.mirrors` has them.
    free_draws: how many draws cost no more than one; a student then learns from so many at once.
    logged: further numbers of the last training step, 0-dimensional tensors, for metrics.jsonl. Those that
        start with "kl" are nats per image: training warns where their sum falls to nothing.
    learning_rate: that it is trained with unless `train` is told another, under AdamW.
    files: constructor arguments that may name files, or URLs; they are never taken from a model file.
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
    learning_rate: float = LEARNING_RATE
    logged: Mapping[str, Tensor] = MappingProxyType({})
    files: tuple[str, ...] = ()

    @abstractmethod
    def sample(self, noisy: Tensor, n: int = 1) -> Tensor:
        """(B, C, *S) -> (n, B, C', *S'): n independent draws per image, in eval mode, no gradient.

        C' is `out_channels`, and each side of S' is `scale` times that of S.
        """

    def draws(self, noisy: Tensor, n: int) -> Iterator[Tensor]:
        """The same n draws one at a time, each (B, C', *S). Override to share work between them."""
        for _ in range(n):
            yield self.sample(noisy)[0]

    def declare(
        self, out_channels: int | None = None, scale: Scale = 1, out_names: Sequence[str] = ()
    ) -> None:
        """For constructors that take them: sets the attributes of these names. Errors: ValueError."""
        factors(scale)
        if out_channels is not None and out_channels < 1:
            raise ValueError(f"out_channels: got {out_channels}, must be at least 1")
        if out_names and len(out_names) != out_channels:
            raise ValueError(f"out_names: got {list(out_names)}, must be out_channels={out_channels} names")
        self.out_channels, self.scale, self.out_names = out_channels, scale, tuple(out_names)

    def draw_shape(self, noisy: Sequence[int]) -> tuple[int, ...]:
        """Of a draw of noisy images of shape (B, C, *S)."""
        batch, channels, *size = noisy
        enlarged = [
            n * by for n, by in zip(size, (*[1] * (len(size) - 2), *factors(self.scale)), strict=True)
        ]
        return (batch, self.out_channels or channels - self.conditions, *enlarged)

    def split(self, noisy: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C + conditions, *S) -> the images (B, C, *S), and the conditions (B, conditions, *S)."""
        channels = noisy.shape[1] - self.conditions
        return noisy[:, :channels], noisy[:, channels:]

    def training_images(self, frames: Any) -> Any:
        """Called once before training, with the images (N, C, Y, X) in raw counts. Returns the array
        (N, C', Y, X) that patches are cut from; the images themselves by default. Append channels
        here if `sample` needs more than the noisy image, as CachedDraws does."""
        return frames

    def prepare(self, noisy: Tensor, mean: Tensor, std: Tensor) -> None:
        """Told once, before co-training: some training frames (N, C, *S), and the training data's
        mean and std in raw counts, each (C, 1, 1), of volumes (C, 1, 1, 1); of conditions 0 and 1.
        Default: nothing."""

    def training_step(self, noisy: Tensor) -> tuple[Tensor, Tensor]:
        """(scalar loss, one draw (B, C', *S) from the same forward pass).

        Not overridden: the sampler is frozen and only the student is trained.
        """
        raise NotImplementedError(f"{type(self).__name__} is a frozen sampler")

    @property
    def trainable(self) -> bool:
        """Whether co-training can improve it: it has a training step, and weights that are not frozen."""
        has_step = type(self).training_step is not PosteriorSampler.training_step
        return has_step and any(p.requires_grad for p in self.parameters())


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode and no gradient inside, the former mode afterwards."""
    was_training = module.training
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        module.train(was_training)


def draw_statistics(sampler: PosteriorSampler, batches: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and std of each channel of one draw of every image, (C', 1, ...); batches of noisy (B, C, *S).

    Batch by batch. Errors: ValueError for a channel that is the same everywhere.
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
            f"{type(sampler).__name__}: channel {c} of its draws is {float(mean[c]):.4g} everywhere, which "
            "leaves nothing to learn; check the sampler, or leave that channel out"
        )
    return per_channel(mean.float(), sampler.dims), per_channel(std.float(), sampler.dims)


def _moments(sampler: PosteriorSampler, noisy: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Mean and sum of squared deviations (Welford): memory does not grow with n."""
    accurate = torch.float32 if noisy.device.type == "mps" else torch.float64  # mps has no float64
    draws = (draw.to(accurate) for draw in sampler.draws(noisy, n))
    mean = next(draws).clone()
    m2 = torch.zeros_like(mean)
    for i, draw in enumerate(draws, start=2):
        delta = draw - mean
        mean += delta / i
        m2 += delta * (draw - mean)
    return mean, m2


def posterior_mean(sampler: PosteriorSampler, noisy: Tensor, n: int = 100) -> Tensor:
    """Mean of n draws (the MMSE estimate, paper Eq. 6), shaped like one draw."""
    return _moments(sampler, noisy, n)[0].to(noisy.dtype)


def posterior_std(sampler: PosteriorSampler, noisy: Tensor, n: int = 100) -> Tensor:
    """Per-pixel standard deviation of n >= 2 draws (unbiased variance), shaped like one draw."""
    return (_moments(sampler, noisy, n)[1] / (n - 1)).sqrt().to(noisy.dtype)


def posterior_median(sampler: PosteriorSampler, noisy: Tensor, n: int = 100) -> Tensor:
    """Per-pixel median of n draws (the MMAE estimate, paper Eq. 5). Holds all n draws in memory."""
    return median(torch.stack(list(sampler.draws(noisy, n))))


def median(draws: Tensor) -> Tensor:
    """Over the first dimension; of an even number the mean of the middle two, unlike torch.median."""
    ordered, n = draws.sort(dim=0).values, len(draws)  # torch.quantile refuses 16 million values
    return (ordered[(n - 1) // 2] + ordered[n // 2]) / 2
