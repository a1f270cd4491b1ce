"""Conditional flow matching: draws by a few steps along a learnt velocity, from noise to image."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from samplers.base import PosteriorSampler, evaluating
from students.padding import crop, pad_to_multiple


class FlowMatching(PosteriorSampler):
    """Flow matching on straight paths (Lipman et al. 2023, arXiv:2210.02747), given the noisy image.

    From x_0 ~ N(0, I), dx/dt = v(x, t, noisy) leads at t = 1 to a draw of the clean image; `steps` Euler
    steps follow it. v is trained to be E[x_1 - x_0 | x_t, noisy] with x_t = (1 - t) x_0 + t x_1, for which
    pairs of noisy and clean images are needed.

    Args:
        velocity: (x_t (B, C, H, W), t (B,), noisy (B, C, H, W)) -> (B, C, H, W), all in units of
            (counts - mean) / std. `WithTime` makes one of a student's network.
        mean, std: those units, in raw counts, for a velocity that was trained elsewhere. Default: of the
            noisy training images.
        clean: clean images (N, C, Y, X) or (N, Y, X) in raw counts, one for each training image: with them,
            and images of the same N, Y and X, `train` trains the velocity too. Without, it is frozen. A run
            does not keep them.
        steps: passes of the network per draw.
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
        self.declare(channels)  # though its training images have those of the clean ones too
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
        """Frames (N, C, Y, X) -> (N, 2 C, Y, X), the clean ones behind the noisy. ValueError for others."""
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
            given = (noisy[:, : self.channels] - self.mean_of) / self.std_of
            draws = torch.stack([self._draw(given) for _ in range(n)])
            return (draws * self.std_of + self.mean_of).to(noisy.dtype)

    def training_step(self, noisy: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 2 C, H, W), noisy and clean -> `squared_error`, and a draw, by the passes of `sample`."""
        return self.squared_error(noisy), self.sample(noisy)[0]

    def squared_error(self, noisy: Tensor) -> Tensor:
        """(B, 2 C, H, W), noisy and clean -> that of the velocity at a random time, in standardized units."""
        if noisy.shape[1] != 2 * self.channels:
            raise NotImplementedError("FlowMatching: has no clean images to learn from; pass clean")
        given, target = ((noisy - self.mean_of.repeat(2, 1, 1)) / self.std_of.repeat(2, 1, 1)).chunk(2, dim=1)
        start, t = torch.randn_like(target), torch.rand(len(target), device=target.device)
        x = torch.lerp(start, target, t[:, None, None, None])
        return (self._v(x, t, given) - (target - start)).square().mean()

    def _draw(self, given: Tensor) -> Tensor:
        x = torch.randn_like(given)
        for i in range(self.steps):
            t = x.new_full((len(x),), i / self.steps)
            x = x + self._v(x, t, given) / self.steps
        return x

    def _v(self, x: Tensor, t: Tensor, given: Tensor) -> Tensor:
        multiple = getattr(self.velocity, "multiple", 1)
        x_padded, given_padded = (pad_to_multiple(each, multiple) for each in (x, given))
        return crop(self.velocity(x_padded, t, given_padded).float(), x.shape[2:])


class WithTime(nn.Module):
    """A network of images as a velocity: it sees x_t, the noisy image and t as further channels.

    backbone: (B, 2 C + 1, H, W) -> (B, C, H, W), such as UNet(in_channels=3) for C = 1.
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone, self.multiple = backbone, getattr(backbone, "multiple", 1)

    def forward(self, x: Tensor, t: Tensor, noisy: Tensor) -> Tensor:
        time = t[:, None, None, None].expand(-1, 1, *x.shape[2:])
        return self.backbone(torch.cat([x, noisy, 2 * time - 1], dim=1))


class Pairs:
    """Noisy and clean frames (N, C, Y, X) as one (N, 2 C, Y, X); only what is indexed is read."""

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
