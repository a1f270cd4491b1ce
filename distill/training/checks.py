"""What cannot be trained, found before anything is written."""

from typing import Any

import torch
from torch import Tensor, nn

from distill.denoiser import DirectDenoiser
from distill.errors import UserError, checks_of
from distill.training.budget import seconds
from losses import Loss
from samplers import PosteriorSampler
from samplers.base import evaluating

# Of torch.optim, those that update convolutions by their gradients alone: LBFGS needs the loss several times
# a step, SparseAdam sparse gradients, Muon matrices.
OPTIMIZERS = ("AdamW", "Adamax", "Adam", "ASGD", "Adadelta", "Adafactor", "Adagrad", "NAdam", "RAdam",
              "RMSprop", "Rprop", "SGD")  # fmt: skip


def check_arguments(settings: dict[str, Any], loss: Loss) -> None:
    if settings["draws"] < loss.min_draws:
        raise UserError(f"draws: got {settings['draws']}, must be at least {loss.min_draws} for this loss")
    if settings["budget"]:
        seconds(settings["budget"])
    elif settings["steps"] + settings["refine_steps"] == 0:
        raise UserError("steps and refine_steps: both are 0, so there is nothing to train")
    if settings["schedule"] not in ("cosine", "plateau"):
        raise UserError(f"schedule: got '{settings['schedule']}', allowed are cosine, plateau")
    if settings["optimizer"] not in OPTIMIZERS:
        raise UserError(f"optimizer: got '{settings['optimizer']}', allowed are {', '.join(OPTIMIZERS)}")


def space(*networks: nn.Module) -> float:
    """Bytes that a run's folder takes: a checkpoint has weights, their average and two moments of each; the
    former one stays until the new one is whole; at the end come the weights alone."""
    return 1e6 + 9 * sum(value.nbytes for network in networks for value in network.state_dict().values())


def check_networks(sampler: PosteriorSampler, denoiser: DirectDenoiser, noisy: Tensor, draws: int) -> None:
    """Runs both networks and the loss once, so that a misfit is found before anything is written."""
    with torch.random.fork_rng(), evaluating(denoiser):
        with checks_of(type(sampler).__name__):
            draw = sampler.sample(noisy, draws)
        noisy = noisy[:, : len(denoiser.mean)]
        try:
            with checks_of(type(denoiser.backbone).__name__):
                prediction = denoiser.predict(noisy)
        except RuntimeError as error:
            raise UserError(
                f"{type(denoiser.backbone).__name__}: cannot take images of shape "
                f"{tuple(noisy.shape)} (B, C, *S): {error}; set its in_channels, or its attribute "
                "`multiple` to what H and W must be multiples of"
            ) from error
    wanted = (len(noisy), draw.shape[2] * len(denoiser.loss.outputs), *noisy.shape[2:])
    if draw.shape[:2] != (draws, len(noisy)) or draw.shape[3:] != noisy.shape[2:]:
        raise UserError(
            f"{type(sampler).__name__}.sample: got shape {tuple(draw.shape)} for {tuple(noisy.shape)} "
            f"noisy images and {draws} draws, must be ({draws}, B, C, *S)"
        )
    if prediction.shape != wanted:
        raise UserError(
            f"{type(denoiser.backbone).__name__}: gives shape {tuple(prediction.shape)}, but "
            f"{type(denoiser.loss).__name__} needs {wanted}; set its out_channels to {wanted[1]}"
        )
    with evaluating(denoiser), checks_of("loss"):
        denoiser.loss(prediction, denoiser.standardize(draw))
