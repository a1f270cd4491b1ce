"""Computes blocks of an image: one pass of a student, or the statistics of draws of a sampler."""

import hashlib
import math
import mmap
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from distill.denoiser import DirectDenoiser
from distill.errors import UserError, checks_of
from distill.hardware import Hardware, Precision, seeded
from distill.images.conditions import seen_by
from distill.images.sources import Images, as_stack, check_channels
from distill.images.stack import Stack
from distill.images.statistics import MAX_COUNT, check_finite
from distill.prediction.plan import Block, Cost
from distill.prediction.pretrained import PRETRAINED, pretrained_denoiser, pretrained_sampler
from distill.prediction.receptive_field import receptive_field
from distill.prediction.tiles import HALO, FittingTiles
from distill.runs import checkpoint
from distill.runs.checkpoint import AnyRun
from distill.runs.rebuild import describe
from distill.runs.tensors import digest
from samplers import PosteriorSampler, posterior_mean, posterior_median, posterior_std

Statistic = Literal["mean", "median", "std"]
STATISTICS = {"mean": posterior_mean, "median": posterior_median, "std": posterior_std}
SAMPLE = 128  # px; side of the image for measurements of memory


class NotFinite(UserError):
    """The result of the networks has NaN or infinity. Prediction stops, because other blocks would too."""


class Prediction:
    """A network, an image, and the computation of the result in blocks. For the arguments, see `predict`."""

    def __init__(
        self,
        run: AnyRun,
        noisy: Images,
        *,
        draws: int = 0,
        statistic: Statistic = "mean",
        seed: int = 0,
        device: str | None = None,
        precision: Precision = "auto",
        axes: str | None = None,
        trust: str | Sequence[str] = (),
        conditions: Images | None = None,
    ) -> None:
        self.draws, self.statistic, self.seed = draws, statistic, seed
        self.hardware = Hardware(device, precision)
        self.axes, self.stack, self.name = axes, as_stack(noisy, axes), checkpoint.name_of(run)
        self.conditions = conditions
        if run == PRETRAINED and not Path(PRETRAINED).exists():
            run = pretrained_sampler(self.stack) if draws else pretrained_denoiser(self.stack)
        self.network, trained_on = _network(run, draws, trust)
        self.names = [statistic] if draws else list(self.network.loss.outputs)
        check_channels(self.stack, self.name, trained_on)
        self.stack = seen_by(self.network, self.name, self.stack, conditions)
        self.network.eval().to(self.hardware.device)
        size = self.stack.frames.shape
        _, self.channels, *_, height, width = _output(self.network, size)
        self.scale = height // size[-2], width // size[-1]
        self.depth = size[2:-2]  # the number of planes of volumes; none of images

    @cached_property
    def halo(self) -> int:
        """Default halo in pixels: the student's receptive field; HALO for unlimited ones and samplers."""
        radius = None if self.draws else receptive_field(self.network)
        return HALO if radius is None else radius

    @cached_property
    def has_limited_field(self) -> bool:
        """Whether a halo exists with which tiles give exactly the result of the whole image."""
        return not self.draws and receptive_field(self.network) is not None

    def answer(self, noisy: Tensor, draws: int | None = None) -> Tensor:
        """Noisy (B, C, *S) -> all output images (B, len(names) * C', *S')."""
        if self.draws:
            return STATISTICS[self.statistic](self.network, noisy, n=draws or self.draws)
        return torch.cat(list(self.network.maps(noisy).values()), dim=1)

    def cost(self) -> Cost:
        """Memory per pixel, measured on a small part of the image."""
        frames, few = self.stack.frames, self.draws if self.statistic == "median" else min(self.draws, 2)
        side = slice(SAMPLE // 2 if self.depth else SAMPLE)
        sample = torch.from_numpy(np.array(frames[self._at(0, side, side)], np.float32))[None]
        channels, outputs = frames.shape[1], self.channels * len(self.names) * math.prod(self.scale)
        channels, outputs = (n * math.prod(self.depth) for n in (channels, outputs))
        sample = sample.to(self.hardware.device)
        with checks_of(self.name), torch.inference_mode(), self.hardware.autocast():
            answer = FittingTiles(partial(self.answer, draws=few), None, lambda: self.halo)
            return Cost.of(answer, channels, outputs, sample)

    def identity(self, device: str) -> dict[str, Any]:
        """JSON data that identifies this computation, so that only the same one resumes. device: its type."""
        weights = {key: value.detach().cpu().contiguous() for key, value in self.network.state_dict().items()}
        description = describe(self.network) or type(self.network).__name__
        return {
            "network": digest(weights, {"made": repr(description)}),
            "images": fingerprint(self.stack),
            "computed": [self.draws, self.statistic, self.seed, device, self.hardware.precision],
        }  # fmt: skip

    def in_tiles(self, halo: int | None) -> FittingTiles:
        """The network for `compute`, which uses smaller tiles if memory runs out. halo: that of the plan."""
        return FittingTiles(self.answer, None, lambda: self.halo if halo is None else halo)

    def read(self, block: Block) -> Tensor:
        """The pixels that a block's network sees: (F, C, *s) float32. UserError for NaN and infinity."""
        rows, columns = slice(*block.seen_rows), slice(*block.seen_columns)
        frames = slice(block.first, block.first + block.count)
        counts = self.stack.frames[self._at(frames, rows, columns)]
        with np.errstate(over="ignore"):
            noisy = np.array(counts, np.float32)
        if not (abs(noisy) <= MAX_COUNT).all():
            check_finite(self.stack, range(block.first, block.first + block.count))
        _give_back(self.stack.pixels)
        return torch.from_numpy(noisy)

    def _at(self, frames: Any, rows: slice, columns: slice) -> tuple[Any, ...]:
        """The index of a block of all channels, and of all planes of volumes."""
        return frames, *[slice(None)] * (1 + len(self.depth)), rows, columns

    def compute(self, in_tiles: FittingTiles, batch: int, block: Block, noisy: Tensor) -> list[np.ndarray]:
        """All output images of a block, each (F, C', *s')."""
        parts = [self._batch(in_tiles, block, i, noisy[i : i + batch]) for i in range(0, len(noisy), batch)]
        images = np.concatenate(parts) if len(parts) > 1 else parts[0]
        finite = np.isfinite(images).all(axis=tuple(range(1, images.ndim)))
        if not finite.all():
            raise self._not_finite(images[first := int(finite.argmin())], block.first + first)
        return np.split(images, len(self.names), axis=1)

    def _not_finite(self, image: np.ndarray, frame: int) -> "NotFinite":
        bad = int((~np.isfinite(image)).sum())
        return NotFinite(
            f"{self.name}: its result for frame {frame} of {self.stack.name} has {bad} pixels that are NaN "
            "or infinite; nothing was written; train it again, or pass --precision fp32"
        )

    def _batch(self, in_tiles: FittingTiles, block: Block, i: int, noisy: Tensor) -> np.ndarray:
        device, seeds = self.hardware.device, (self.seed, block.first + i, block.rows[0], block.columns[0])
        with checks_of(self.name), torch.inference_mode(), self.hardware.autocast(), seeded(device, *seeds):
            images = in_tiles(noisy.to(device))
        down, across = self.scale
        height, width = noisy.shape[-2] * down, noisy.shape[-1] * across
        expected = (len(noisy), self.channels * len(self.names), *self.depth, height, width)
        if images.shape != expected:
            raise UserError(
                f"{self.name}: gives {tuple(images.shape)} for noisy images {tuple(noisy.shape)}, but "
                f"declares {expected}; set its out_channels and scale, and train again"
            )
        top, left = block.rows[0] - block.seen_rows[0], block.columns[0] - block.seen_columns[0]
        height, width = block.rows[1] - block.rows[0], block.columns[1] - block.columns[0]
        rows, columns = (
            slice(a * by, (a + n) * by) for a, n, by in ((top, height, down), (left, width, across))
        )
        return images[..., rows, columns].float().cpu().numpy()


def _network(run: AnyRun, draws: int, trust: str | Sequence[str]) -> tuple[Any, int | None]:
    """The network of a run, and the number of channels of its training images, or None if unknown."""
    if isinstance(run, PosteriorSampler) and draws:
        return run, None
    if draws and not checkpoint.has_student(run):
        sampler = checkpoint.load_sampler(run, trust=trust)
        return sampler, getattr(sampler, "channels", None)
    denoiser = checkpoint.load_denoiser(run, trust=trust)
    network = checkpoint.load_sampler(run, trust=trust) if draws else denoiser
    return network, denoiser.plane_channels


def _output(network: DirectDenoiser | PosteriorSampler, frames: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of an output image for all frames."""
    is_sampler = isinstance(network, PosteriorSampler)
    return network.draw_shape(frames) if is_sampler else network.out_shape(frames)


def fingerprint(stack: Stack) -> str:
    """A hash of the shape, the type and the centre of the first, middle and last frame, fast for any size."""
    n, _, *depth, height, width = stack.frames.shape
    sha256 = hashlib.sha256(repr((stack.axes, stack.pixels.shape, str(stack.pixels.dtype))).encode())
    y, x = max(0, height // 2 - SAMPLE), max(0, width // 2 - SAMPLE)
    for i in sorted({0, n // 2, n - 1}):
        space = [*map(slice, depth), slice(y, y + 2 * SAMPLE), slice(x, x + 2 * SAMPLE)]
        sha256.update(np.ascontiguousarray(stack.frames[(i, slice(None), *space)]).data)
    return sha256.hexdigest()


def _give_back(pixels: Any) -> None:
    """Releases the pages of a memory map that were read, which would count as memory of the process."""
    mapped = getattr(pixels, "_mmap", None)
    if isinstance(mapped, mmap.mmap) and pixels.mode == "r" and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)
