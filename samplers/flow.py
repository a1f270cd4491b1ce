"""Conditional flow matching: a few steps along a learnt velocity lead from noise to a clean image."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from samplers.base import PosteriorSampler, evaluating
from students.padding import crop, pad_to_multiple


class FlowMatching(PosteriorSampler):
    """Flow matching on straight paths, conditioned on the noisy image (Lipman et al. 2023, arXiv:2210.02747).

    From x_0 ~ N(0, I), the solution of dx/dt = v(x, t, noisy) at t = 1 is a draw of the clean image; it is
    integrated by `steps` Euler steps. v is trained to be E[x_1 - x_0 | x_t, noisy], where x_t = (1 - t) x_0 +
    t x_1, which takes pairs of noisy and clean images.

    Args:
        velocity: network (x_t (B, C, H, W), t (B,), noisy (B, C, H, W)) -> (B, C, H, W), with images in
            units of (counts - mean) / std. `WithTime` makes one from a student's network.
        channels: number of channels C of the image.
        steps: number of Euler steps, each one pass of the network, per draw.
        mean: mean of a velocity's units in raw counts, if it was trained elsewhere. Default: the mean of the
            noisy training images.
        std: standard deviation of these units in raw counts. Default: that of the noisy training images.
        clean: clean images (N, C, Y, X) or (N, Y, X) in raw counts, one for each training image of the same Y
            and X. With them `train` trains the velocity too; without them it stays frozen. A run does not
            store them.
    """

    mean_of: Tensor
    std_of: Tensor

    def __init__(
        self,
        velocity: nn.Module,
        *,
        mean: float | None = None,
        std: float | None = None,
        clean: Any = None,
        channels: int = 1,
        steps: int = 20,
    ) -> None:
        super().__init__()
        if steps < 1 or (mean is None) != (std is None) or (std is not None and not std > 0):
            raise ValueError(
                f"FlowMatching: got {steps=}, {mean=}, {std=}; needs at least 1 step, and mean with a std "
                "above 0, or neither"
            )
        self.declare(channels)  # its training images have twice as many, with those of the clean images
        self.velocity, self.channels, self.steps = velocity, channels, steps
        self.mean, self.std, self.clean = mean, std, None
        self._clean = None if clean is None else _frames(clean)
        self.register_buffer("mean_of", torch.full((channels, 1, 1), mean or 0.0))
        self.register_buffer("std_of", torch.full((channels, 1, 1), std or 1.0))

    @property
    def trainable(self) -> bool:
        return self._clean is not None and super().trainable

    def prepare(self, noisy: Tensor, mean: Tensor, std: Tensor) -> None:
        if self.mean is None:
            self.mean_of.copy_(mean)
            self.std_of.copy_(std)

    def training_images(self, frames: Any) -> Any:
        """Appends the clean images: (N, C, Y, X) -> (N, 2 C, Y, X). ValueError if the shapes differ."""
        if self._clean is None:
            return frames
        if tuple(self._clean.shape) != tuple(frames.shape):
            raise ValueError(
                f"FlowMatching: got noisy images of shape {tuple(frames.shape)} (N, C, Y, X) and clean ones "
                f"of {tuple(self._clean.shape)}; pass one clean image for each"
            )
        return Pairs(frames, self._clean)

    def sample(self, noisy: Tensor, n: int = 1) -> Tensor:
        with evaluating(self):
            condition = (noisy[:, : self.channels] - self.mean_of) / self.std_of
            draws = torch.stack([self._draw(condition) for _ in range(n)])
            return (draws * self.std_of + self.mean_of).to(noisy.dtype)

    def training_step(self, noisy: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 2 C, H, W), noisy and clean -> (`squared_error`, a draw (B, C, H, W) made by `sample`)."""
        return self.squared_error(noisy), self.sample(noisy)[0]

    def squared_error(self, noisy: Tensor) -> Tensor:
        """(B, 2 C, H, W), noisy and clean -> mean squared error of the velocity at random times."""
        if noisy.shape[1] != 2 * self.channels:
            raise NotImplementedError("FlowMatching: has no clean images to learn from; pass clean")
        both = (noisy - self.mean_of.repeat(2, 1, 1)) / self.std_of.repeat(2, 1, 1)
        condition, target = both.chunk(2, dim=1)
        start, t = torch.randn_like(target), torch.rand(len(target), device=target.device)
        x = torch.lerp(start, target, t[:, None, None, None])
        return (self._v(x, t, condition) - (target - start)).square().mean()

    def _draw(self, condition: Tensor) -> Tensor:
        x = torch.randn_like(condition)
        for i in range(self.steps):
            t = x.new_full((len(x),), i / self.steps)
            x = x + self._v(x, t, condition) / self.steps
        return x

    def _v(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        multiple = getattr(self.velocity, "multiple", 1)
        x_padded, condition = (pad_to_multiple(each, multiple) for each in (x, condition))
        return crop(self.velocity(x_padded, t, condition).float(), x.shape[2:])


class WithTime(nn.Module):
    """Makes a velocity from an image network, which sees x_t, the noisy image and t as channels.

    Args:
        backbone: network (B, 2 C + 1, H, W) -> (B, C, H, W), such as UNet(in_channels=3) for C = 1.
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone, self.multiple = backbone, getattr(backbone, "multiple", 1)

    def forward(self, x: Tensor, t: Tensor, noisy: Tensor) -> Tensor:
        time = t[:, None, None, None].expand(-1, 1, *x.shape[2:])
        return self.backbone(torch.cat([x, noisy, 2 * time - 1], dim=1))


class Pairs:
    """Noisy and clean frames (N, C, Y, X) as one (N, 2 C, Y, X), of which only the indexed part is read."""

    ndim = 4

    def __init__(self, noisy: Any, clean: Any) -> None:
        self._both = (noisy, clean)
        n, channels, *size = noisy.shape
        self.shape = (n, 2 * channels, *size)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: tuple) -> np.ndarray:
        return np.concatenate([np.asarray(each[key], np.float32) for each in self._both])


def _frames(images: Any) -> Any:
    """(N, Y, X) -> (N, 1, Y, X)."""
    shape: Sequence[int] = np.shape(images)
    if len(shape) not in (3, 4):
        raise ValueError(f"FlowMatching: got clean images of shape {tuple(shape)}, must be (N, C, Y, X)")
    return images if len(shape) == 4 else images[:, None]
