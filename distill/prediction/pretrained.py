"""A first answer before any training, by the weights that ship with the package.

For noise of single pixels with a variance that is linear in the signal; the line is estimated.
"""

import torch
from torch import Tensor

from distill.denoiser import DirectDenoiser
from distill.errors import checks_of
from distill.images.stack import Stack
from distill.images.statistics import some_frames, statistics
from losses import L2
from samplers import StabilizedSampler
from samplers.noise.line import noise_line
from students import StabilizedUNet

PRETRAINED = "pretrained"  # in place of a run


def pretrained_denoiser(stack: Stack) -> DirectDenoiser:
    frames, mean, std = _seen(stack)
    student = StabilizedUNet(len(mean), len(mean))
    student.load_pretrained()
    with checks_of("noise"):
        student.prepare(frames, mean, std, *noise_line(frames))
    denoiser = DirectDenoiser(student, L2(), channels=len(mean))
    denoiser.prepare(mean, std)
    return denoiser.eval()


def pretrained_sampler(stack: Stack) -> StabilizedSampler:
    frames, mean, std = _seen(stack)
    sampler = StabilizedSampler(channels=len(mean))
    sampler.load_pretrained()
    with checks_of("noise"):
        sampler.prepare(frames, mean, std)
    return sampler.eval()


def _seen(stack: Stack) -> tuple[Tensor, Tensor, Tensor]:
    """Some frames, and the mean and std of all, (C, 1, 1)."""
    mean, std = (torch.from_numpy(v) for v in statistics(stack))
    return torch.from_numpy(some_frames(stack, 8)), mean, std
