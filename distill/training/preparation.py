"""What both networks and the loss are told of the images, and the weights that they start from."""

import numpy as np
import torch
from torch import Tensor, nn

from distill.denoiser import DirectDenoiser
from distill.errors import checks_of
from distill.hardware import Hardware
from distill.images.stack import Stack
from distill.images.statistics import SIDE, some_frames
from distill.runs.checkpoint import has_student, load_sampler, load_weights
from distill.training.defaults import Init
from distill.training.patches import Patches
from samplers import PosteriorSampler
from samplers.base import draw_statistics
from samplers.noise.split import LightSplit
from students import StabilizedUNet

BATCH, BATCHES = 8, 8  # patches that the statistics of draws are of


def prepare_networks(
    sampler: PosteriorSampler,
    denoiser: DirectDenoiser,
    stack: Stack,
    mean: Tensor,
    std: Tensor,
    init: Init,
    co_training: bool,
) -> tuple[LightSplit | None, nn.Module | None]:
    """(how the light of these images is split, their noise model), where the sampler or the student needs
    to know; mean and std of the images, each (C, 1, 1)."""
    student = denoiser.backbone
    if init not in ("pretrained", "none"):
        load_weights(init, sampler, student)
        if sampler.trainable and not co_training:
            _take_over(load_sampler(init, trust=type(sampler).__module__), sampler)
    some = torch.from_numpy(some_frames(stack, 8, SIDE))
    with checks_of(stack.name):
        if co_training or (init == "pretrained" and hasattr(sampler, "load_pretrained")):
            sampler.prepare(some, mean, std)  # a sampler that is already trained keeps its statistics
        denoiser.prepare(mean, std)
        noise_model: nn.Module | None = getattr(sampler, "noise_model", None)
        light = getattr(sampler, "light", None)
        if isinstance(student, StabilizedUNet):
            light = light if isinstance(light, LightSplit) else LightSplit.fit(some, noise_model)
            student.prepare(some, mean, std, *light.line, light.correlated)
        if not denoiser.reshapes:  # else it is told of draws: see `prepare_outputs`
            denoiser.loss.prepare(denoiser.plane(denoiser.standardize(some)))
    if init == "pretrained":
        _load_pretrained(sampler, student)
    elif init != "none" and not has_student(init):
        _load_pretrained(student)
    return light, noise_model


def prepare_outputs(
    sampler: PosteriorSampler, denoiser: DirectDenoiser, patches: Patches, hardware: Hardware
) -> None:
    """Where the student's outputs differ from its images in shape: tells it the mean and std of draws of some
    patches, and the loss what they look like. Both networks on the device already."""
    if not denoiser.reshapes:
        return
    generator = np.random.default_rng(0)
    some = [patches.sample(BATCH, generator) for _ in range(BATCHES)]
    with torch.random.fork_rng(), checks_of():
        denoiser.prepare_outputs(*draw_statistics(sampler, (hardware.put(each) for each in some)))
        denoiser.loss.prepare(denoiser.standardize_draws(sampler.sample(hardware.put(some[0]))[0]))


def _take_over(trained: PosteriorSampler, sampler: PosteriorSampler) -> None:
    """All of a sampler that is not trained further: the statistics and the noise of its own images too."""
    for name in ("noise_model", "light"):
        if hasattr(trained, name):
            setattr(sampler, name, getattr(trained, name))
    sampler.load_state_dict(trained.state_dict())


def _load_pretrained(*networks: nn.Module) -> None:
    """The weights in the package, for networks that have some."""
    for network in networks:
        if load_pretrained := getattr(network, "load_pretrained", None):
            with checks_of('init="pretrained"'):
                load_pretrained()
