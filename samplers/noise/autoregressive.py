"""An autoregressive model of spatially correlated noise (Salmon & Krull, ECCV workshops 2022)."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from samplers.noise import npz
from samplers.noise.base import NoiseModel
from samplers.noise.pixel_cnn import PixelCNN

_ARGUMENTS = ("context", "filters", "kernel", "dilations", "components", "min_scale")


class AutoregressiveNoise(NoiseModel):
    """p(noise) = product of p(pixel | pixels before it), where noise = noisy - signal in raw counts.

    Every channel has noise of the same distribution, independent of the other channels. The published sizes
    are filters=128, kernel=5, dilations=(1, 2, 4, 8, 16) and components=3 to 10; the defaults suit a CPU.

    The weights are parameters, so that a checkpoint contains them, but they require gradients only in `fit`,
    so that no optimizer changes them. Nothing depends on training or eval mode.

    Args:
        context: "image" conditions a pixel on all pixels before it in raster order; "row", for line noise
            and far cheaper, only on those in the same row; "column" only on those in the same column.
        filters: number of filters of each layer.
        kernel: kernel size, odd and at least 3.
        dilations: dilation of each layer after the first.
        components: number of Gaussians of each pixel's mixture.
        min_scale: lower bound of a component's std, in units of the noise's std.
    """

    isotropic = False
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        context: Literal["image", "row", "column"] = "image",
        *,
        filters: int = 32,
        kernel: int = 5,
        dilations: Sequence[int] = (1, 2, 4),
        components: int = 3,
        min_scale: float = 0.01,
    ) -> None:
        super().__init__()
        if context not in ("image", "row", "column"):
            raise ValueError(f"AutoregressiveNoise: got context='{context}', allowed are image, row, column")
        self.context, self.filters, self.kernel = context, filters, kernel
        self.dilations, self.components, self.min_scale = list(dilations), components, min_scale
        self.mirrors = {"image": (), "row": ("y",), "column": ("x",)}[context]
        self.net = PixelCNN(filters, kernel, dilations, components, min_scale, context == "image")
        self.net.requires_grad_(False)
        self.register_buffer("mean", torch.tensor(0.0))
        self.register_buffer("std", torch.tensor(1.0))

    def log_likelihood(self, noisy: Tensor, signal: Tensor) -> Tensor:
        """log p(noisy | signal) in nats per pixel, of images (..., H, W).

        The gradient is exact: the signal of a pixel acts on the pixel's own term and on those of all later
        pixels that are conditioned on it.
        """
        with torch.autocast(signal.device.type, enabled=False):
            noise = self._turned((noisy.float() - signal.float() - self.mean) / self.std)
            density = self.net.log_density(noise.reshape(-1, 1, *noise.shape[-2:]))
            return self._turned(density.reshape(noise.shape)) - self.std.log()

    @torch.no_grad()
    def sample(self, signal: Tensor) -> Tensor:
        """Draws one noisy observation of `signal` (..., H, W).

        Pixels are drawn one after another. Row context takes W network calls on the last `reach` columns, and
        column context H; image context takes H calls on the last `reach` rows and H * W calls on one row.
        """
        signal = self._turned(signal.float())
        height, width = signal.shape[-2:]
        reach, above = self.net.reach, self.context == "image"
        noise = torch.zeros_like(signal).reshape(-1, 1, height, width)
        stripe = 1 if above else max(height, 1)  # rows drawn in parallel
        for h in range(0, height, stripe):
            rows = noise[:, :, h : h + stripe]
            recent = noise[:, :, max(0, h - reach) : h + stripe]
            conditions = [v[:, :, -1:] for v in self.net.vertical(recent)]
            for w in range(width):
                crop = slice(max(0, w - reach), w + 1)
                near = [v[..., crop] for v in conditions] or [None] * len(self.net.layers)
                rows[..., w : w + 1] = self.net.draw(self.net.horizontal(rows[..., crop], near)[..., -1:])
        return self._turned(signal + noise.reshape(signal.shape) * self.std + self.mean)

    def _turned(self, x: Tensor) -> Tensor:
        """Swaps rows and columns for column context: the network only knows rows and images."""
        return x.transpose(-1, -2) if self.context == "column" else x

    @classmethod
    def read(cls, path: npz.NoiseFile) -> AutoregressiveNoise:
        """Reads the model from an .npz file of `write`. ValueError if the file is not one."""
        stored = npz.read(path, ["context", "dilations"])
        arguments = {key: stored.pop(key).tolist() for key in _ARGUMENTS if key in stored}
        try:
            with torch.device("meta"):  # no memory: arguments may ask for more than the weights fill
                model = cls(**arguments)
            weights = {key: torch.as_tensor(value, dtype=torch.float32) for key, value in stored.items()}
            model.load_state_dict(weights, assign=True)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"{path}: its weights do not fit {arguments} ({error})") from None
        return model

    def write(self, path: npz.NoiseFile) -> None:
        """Writes the constructor's arguments and the weights to an .npz file."""
        weights = {key: value.cpu().numpy() for key, value in self.state_dict().items()}
        npz.write(path, **{key: getattr(self, key) for key in _ARGUMENTS}, **weights)

    @classmethod
    def fit(
        cls,
        noise: Tensor | np.ndarray,
        context: Literal["image", "row", "column"] = "image",
        *,
        steps: int = 2000,
        seconds: float = math.inf,
        batch_size: int = 8,
        patch_size: int = 64,
        lr: float = 2e-3,
        validate_every: int = 50,
        patience: int = 10,
        seed: int = 0,
        device: str | None = None,
        **network: Any,
    ) -> AutoregressiveNoise:
        """Maximum-likelihood fit to images of noise alone.

        A fifth of the frames, or of the area of a single frame, is held out for validation. Training ends
        after `steps`, after `seconds`, or after `patience` validations without improvement, and keeps the
        best weights. The published training uses Adam with a learning rate of 1e-4 and batches of 8.

        Args:
            noise: images (N, H, W), (N, 1, H, W) or (H, W). Subtract the black level from dark frames first;
                the rest of it would count as noise.
            context: see the class.
            steps: largest number of updates.
            seconds: largest duration in seconds. Default: no limit.
            batch_size: number of patches per update.
            patch_size: side of a patch in pixels.
            lr: learning rate.
            validate_every: number of updates between two validations.
            patience: number of validations without improvement after which training ends.
            seed: seeds the weights, the patches and the validation split.
            device: device of the training. Default: that of `noise`.
            network: further arguments of the constructor.
        """
        if min(steps, seconds) <= 0:
            raise ValueError(
                f"AutoregressiveNoise.fit: got steps={steps}, seconds={seconds}; must be above 0"
            )
        generator = torch.Generator().manual_seed(seed)
        frames = _frames(noise, generator)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = cls(context, **network).to(device or frames.device)
        model.mean.copy_(frames.mean())
        model.std.copy_(frames.std())
        frames = model._turned((frames.to(model.std) - model.mean) / model.std)
        train, held_out = _split(frames, generator)
        _check_extent(model.net, train.shape[-2:], patch_size, context)
        held_out = _crops(held_out, 64, patch_size, torch.Generator().manual_seed(seed))
        net, started = model.net.requires_grad_(True), time.monotonic()
        optimizer = torch.optim.Adam(net.parameters(), lr)
        best, best_weights, stale, done = math.inf, None, 0, 0.0
        for step in range(steps + 1):
            done = max(step / steps, (time.monotonic() - started) / seconds)
            if step % validate_every == 0 or done >= 1:
                with torch.no_grad():
                    parts = held_out.split(batch_size)
                    value = sum(float(-net.log_density(p).sum()) for p in parts) / held_out.numel()
                stale += 1
                if value < best:
                    best, stale = value, 0
                    best_weights = {k: v.clone() for k, v in net.state_dict().items()}
                if done >= 1 or stale > patience:
                    break
            optimizer.param_groups[0]["lr"] = lr * 0.5 * (1 + math.cos(math.pi * done))
            optimizer.zero_grad()
            (-net.log_density(_crops(train, batch_size, patch_size, generator)).mean()).backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 5.0)
            optimizer.step()
        if best_weights is None:
            raise ValueError(f"AutoregressiveNoise.fit: likelihood is {value}; lower lr={lr}")
        net.load_state_dict(best_weights)
        net.requires_grad_(False)
        return model

    @classmethod
    def fit_pairs(
        cls, noisy: Tensor | np.ndarray, signal: Tensor | np.ndarray, *args: Any, **options: Any
    ) -> AutoregressiveNoise:
        """Fits to noisy - signal. `signal` broadcasts, such as the mean (H, W) of a static (N, H, W)."""
        noisy, signal = torch.as_tensor(noisy), torch.as_tensor(signal)
        try:
            signal = signal.expand_as(noisy)
        except RuntimeError:
            raise ValueError(
                f"AutoregressiveNoise.fit_pairs: signal {tuple(signal.shape)} does not broadcast "
                f"to noisy {tuple(noisy.shape)}; pass e.g. (H, W) and (N, H, W)"
            ) from None
        return cls.fit(noisy.float() - signal.float(), *args, **options)


def _frames(noise: Tensor | np.ndarray, generator: torch.Generator) -> Tensor:
    """Noise as float32 (N, 1, H, W), dequantised if it is of integers; ValueError if unusable."""
    noise = torch.as_tensor(noise)
    frames = noise.float()
    usable = frames.ndim in (2, 3) or (frames.ndim == 4 and frames.shape[1] == 1)
    if not usable or frames.numel() < 2 or not frames.isfinite().all() or frames.std() == 0:
        raise ValueError(
            f"AutoregressiveNoise.fit: got noise of shape {tuple(noise.shape)}, constant or not "
            "finite or not images; pass finite (N, H, W) or (N, 1, H, W) of one channel"
        )
    if torch.equal(frames, frames.round()):  # a density fitted to integers would collapse on them
        frames = frames + (torch.rand(frames.shape, generator=generator) - 0.5).to(frames.device)
    return frames.reshape(-1, 1, *frames.shape[-2:])


def _split(frames: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(training frames, held-out frames): a fifth of the frames, or of the rows of one frame, is held out."""
    if len(frames) == 1:
        cut = -max(1, frames.shape[-2] // 5)
        return frames[:, :, :cut], frames[:, :, cut:]
    order = torch.randperm(len(frames), generator=generator)
    count = max(1, len(frames) // 5)
    return frames[order[count:]], frames[order[:count]]


def _check_extent(net: PixelCNN, size: Sequence[int], patch_size: int, context: str) -> None:
    """ValueError if a tap lies outside every patch: it would be untrained, but act in larger images."""
    height, width = (min(side, patch_size) for side in size)
    needed = min(height, width) if context == "image" else width
    if needed <= net.longest or height == 0:
        raise ValueError(
            f"AutoregressiveNoise.fit: got patches of {height} x {width} pixels, must be more than "
            f"{net.longest}, which the largest dilation reaches; pass larger frames, a larger "
            "patch_size or smaller dilations"
        )


def _crops(frames: Tensor, count: int, size: int, generator: torch.Generator) -> Tensor:
    """Random crops (count, 1, size, size) of frames (N, 1, H, W); smaller if the frames are smaller."""
    height, width = (min(size, side) for side in frames.shape[-2:])
    picks = [
        torch.randint(n, (count,), generator=generator).tolist()
        for n in (len(frames), frames.shape[-2] - height + 1, frames.shape[-1] - width + 1)
    ]
    return torch.stack([frames[i, :, y : y + height, x : x + width] for i, y, x in zip(*picks, strict=True)])
