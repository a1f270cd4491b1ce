"""Prepares the networks and the loss for the images: statistics, noise, and initial weights."""

import numpy as np
import torch
from torch import Tensor, nn

from distill.denoiser import DirectDenoiser
from distill.errors import checks_of
from distill.hardware import Hardware, forked
from distill.images.stack import Stack
from distill.images.statistics import SIDE, some_frames
from distill.runs.checkpoint import has_student, load_sampler, load_weights
from distill.training.defaults import Init
from distill.training.patches import Patches
from samplers import PosteriorSampler, StabilizedSampler
from samplers.base import draw_statistics
from samplers.noise.split import LightSplit
from students import StabilizedUNet

BATCH, BATCHES = 8, 8  # patches for the statistics of draws: size and number of batches


def prepare_networks(
    sampler: PosteriorSampler,
    denoiser: DirectDenoiser,
    stack: Stack,
    mean: Tensor,
    std: Tensor,
    init: Init,
    co_training: bool,
) -> tuple[LightSplit | None, nn.Module | None]:
    """Passes the images' statistics and noise to the networks, and loads their initial weights.

    mean, std: of the images, each (C, 1, 1), in raw counts.
    Returns (how the light of these images is split, the noise model), each None if no network uses it.
    """
    student = denoiser.backbone
    if init not in ("pretrained", "none"):
        load_weights(init, sampler, student)
        if sampler.trainable and not co_training:
            _take_over(load_sampler(init, trust=type(sampler).__module__), sampler)
    frames = torch.from_numpy(some_frames(stack, 8, SIDE))
    with checks_of(stack.name):
        if co_training or (init == "pretrained" and hasattr(sampler, "load_pretrained")):
            sampler.prepare(
                frames, mean, std
            )  # a sampler that is not trained further keeps its own statistics
        denoiser.prepare(mean, std)
        noise_model: nn.Module | None = getattr(sampler, "noise_model", None)
        light = getattr(sampler, "light", None)
        if isinstance(student, StabilizedUNet):
            light = light if isinstance(light, LightSplit) else LightSplit.fit(frames, noise_model)
            if isinstance(sampler, StabilizedSampler) and sampler.light is None:  # a file does not store it
                sampler.light = light
            student.prepare(frames, mean, std, *light.line, light.correlation)
        if not denoiser.reshapes:  # otherwise `prepare_outputs` passes draws to the loss
            denoiser.loss.prepare(denoiser.plane(denoiser.standardize(frames)))
    if init == "pretrained":
        _load_pretrained(sampler, student)
    elif init != "none" and not has_student(init):
        _load_pretrained(student)
    return light, noise_model


def prepare_outputs(
    sampler: PosteriorSampler, denoiser: DirectDenoiser, patches: Patches, hardware: Hardware
) -> None:
    """Passes the mean and std of some draws to a student whose outputs are not shaped like its images.

    The loss gets some of these draws. Both networks must be on the device already.
    """
    if not denoiser.reshapes:
        return
    generator = np.random.default_rng(0)
    batches = [patches.sample(BATCH, generator) for _ in range(BATCHES)]
    with forked(hardware.device), checks_of():
        denoiser.prepare_outputs(*draw_statistics(sampler, (hardware.put(each) for each in batches)))
        denoiser.loss.prepare(denoiser.standardize_draws(sampler.sample(hardware.put(batches[0]))[0]))


def _take_over(trained: PosteriorSampler, sampler: PosteriorSampler) -> None:
    """Copies a sampler that is not trained further, including the statistics and noise of its images."""
    for name in ("noise_model", "light"):
        if hasattr(trained, name):
            setattr(sampler, name, getattr(trained, name))
    sampler.load_state_dict(trained.state_dict())


def _load_pretrained(*networks: nn.Module) -> None:
    """Loads the weights in the package into the networks that have some."""
    for network in networks:
        if load_pretrained := getattr(network, "load_pretrained", None):
            with checks_of('init="pretrained"'):
                load_pretrained()
