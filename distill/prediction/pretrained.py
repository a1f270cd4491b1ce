"""Networks with the weights in the package, for a first result before any training.

The noise of the images is estimated: a variance that is linear in the signal, and the correlation of pixels.
"""

import torch
from torch import Tensor

from distill.denoiser import DirectDenoiser
from distill.errors import checks_of
from distill.images.stack import Stack
from distill.images.statistics import SIDE, some_frames, statistics
from losses import L2
from samplers import StabilizedSampler
from samplers.noise.split import LightSplit
from students import StabilizedUNet

PRETRAINED = "pretrained"  # instead of the path of a run


def pretrained_denoiser(stack: Stack, light: LightSplit | None = None) -> DirectDenoiser:
    """A student with the weights in the package, prepared for these images.

    light: how their light is split, of `pretrained_sampler`. Default: estimated.
    """
    frames, mean, std = _seen(stack)
    student = StabilizedUNet(len(mean), len(mean))
    if light is None:
        with checks_of(f"{stack.name}: noise"):
            light = LightSplit.fit(frames)
    student.prepare(frames, mean, std, *light.line, light.correlation)
    student.load_pretrained()
    denoiser = DirectDenoiser(student, L2(), channels=len(mean))
    denoiser.prepare(mean, std)
    return denoiser.eval()


def pretrained_sampler(stack: Stack) -> StabilizedSampler:
    """A sampler with the weights in the package, prepared for these images."""
    frames, mean, std = _seen(stack)
    sampler = StabilizedSampler(channels=len(mean))
    with checks_of(f"{stack.name}: noise"):
        sampler.prepare(frames, mean, std)
    sampler.load_pretrained()
    return sampler.eval()


def _seen(stack: Stack) -> tuple[Tensor, Tensor, Tensor]:
    """Some frames (N, C, Y, X), and the mean and std of all frames, each (C, 1, 1)."""
    mean, std = (torch.from_numpy(v) for v in statistics(stack))
    return torch.from_numpy(some_frames(stack, 8, SIDE)), mean, std
