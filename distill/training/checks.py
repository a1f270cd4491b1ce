"""Checks of the arguments and networks of a training, before anything is written."""

from typing import Any

from torch import Tensor, nn

from distill.denoiser import DirectDenoiser
from distill.errors import UserError, checks_of
from distill.hardware import forked
from distill.images.context import plane_count
from distill.training.budget import seconds
from losses import Loss
from samplers import FlowMatching, NextPhoton, PosteriorSampler, StabilizedSampler
from samplers.base import evaluating
from samplers.vae import VAESampler
from students import StabilizedUNet

# The optimizers of torch.optim that need only dense gradients of any shape. LBFGS computes the loss several
# times per step, SparseAdam needs sparse gradients, and Muon updates matrices only.
OPTIMIZERS = ("AdamW", "Adamax", "Adam", "ASGD", "Adadelta", "Adafactor", "Adagrad", "NAdam", "RAdam",
              "RMSprop", "Rprop", "SGD")  # fmt: skip

# The likelihoods, units and pretrained weights of these networks apply to images only.
WITHOUT_CONDITIONS = (StabilizedSampler, StabilizedUNet, VAESampler, FlowMatching, NextPhoton)


def check_arguments(settings: dict[str, Any], loss: Loss) -> None:
    if settings["draws"] < loss.min_draws:
        raise UserError(f"draws: got {settings['draws']}, must be at least {loss.min_draws} for this loss")
    if settings["budget"]:
        seconds(settings["budget"])
    elif settings["steps"] + settings["refine_steps"] == 0:
        raise UserError("steps and refine_steps: both are 0, so there is nothing to train")
    if settings["schedule"] not in ("cosine", "plateau"):
        raise UserError(f"schedule: got '{settings['schedule']}', allowed are cosine, plateau")
    judging = "patience" if settings["patience"] else "schedule" if settings["schedule"] == "plateau" else ""
    if judging and not settings["val_fraction"]:
        raise UserError(
            f"{judging}: got {settings[judging]} with val_fraction=0, but it needs held-out patches; pass "
            "val_fraction=0.05"
        )
    if settings["optimizer"] not in OPTIMIZERS:
        raise UserError(f"optimizer: got '{settings['optimizer']}', allowed are {', '.join(OPTIMIZERS)}")


def space(*networks: nn.Module) -> float:
    """Bytes of disk that a run needs.

    A checkpoint has the weights, their average and two moments for each weight. The old checkpoint is kept
    until the new one is complete, and the weights alone are saved at the end: 9 times the weights.
    """
    return 1e6 + 9 * sum(value.nbytes for network in networks for value in network.state_dict().values())


def common_dims(sampler: PosteriorSampler, student: nn.Module) -> int:
    """The number of spatial axes that both networks see. UserError if they differ."""
    of_student = getattr(student, "dims", 2)
    if sampler.dims != of_student:
        raise UserError(
            f"dims: got {sampler.dims} of {type(sampler).__name__} and {of_student} of "
            f"{type(student).__name__}, must be the same; volumes need --sampler HDN --sampler.dims 3 "
            "--student LightUNet --student.dims 3"
        )
    return of_student


def check_seen(context: str | None, conditions: int, *networks: nn.Module) -> None:
    """UserError for an invalid context, and for networks that cannot use a context or conditions."""
    plane_count(context)
    for network in networks:
        if context and isinstance(network, StabilizedSampler | StabilizedUNet):
            raise UserError(
                f"context: got {context}, but {type(network).__name__} sees single planes; pass --sampler "
                "HDN (or DivNoising) and --student LightUNet (or UNet)"
            )
        if conditions and isinstance(network, WITHOUT_CONDITIONS):
            raise UserError(
                f"conditions: got {conditions}, but {type(network).__name__} takes none; pass a sampler that "
                "takes them, such as FunctionSampler or DiffusionSampler, and --student LightUNet (or UNet)"
            )


def student_of(
    sampler: PosteriorSampler,
    student: nn.Module,
    loss: Loss,
    channels: int,
    context: str | None,
    conditions: int,
) -> DirectDenoiser:
    """Wraps the student as a DirectDenoiser that predicts images shaped like the sampler's draws.

    channels: input channels, including those of the context and the conditions.
    Raises UserError if a network cannot use the context or the conditions, or if the student can only
    predict images shaped like its input and the draws have another shape.
    """
    check_seen(context, conditions, sampler, student)
    with checks_of(type(sampler).__name__):
        shape = sampler.out_channels, sampler.scale, sampler.out_names
        denoiser = DirectDenoiser(student, loss, channels, *shape, context, conditions)
    if denoiser.reshapes and isinstance(student, StabilizedUNet):
        raise UserError(
            "student: got StabilizedUNet, whose output is shaped like its input, but "
            f"{type(sampler).__name__} draws {denoiser.out_channels} channels at scale {denoiser.scale}; "
            "pass --student LightUNet, or UNet"
        )
    return denoiser


def check_draws(sampler: PosteriorSampler, denoiser: DirectDenoiser, noisy: Tensor, draws: int) -> Tensor:
    """Draws of noisy patches; UserError if their shape does not match the sampler's declaration."""
    with forked(noisy.device), checks_of(type(sampler).__name__):
        samples = sampler.sample(noisy, draws)
    images = noisy[:, : len(denoiser.mean)].shape
    if samples.shape != (expected := (draws, *denoiser.out_shape(images))):
        raise UserError(
            f"{type(sampler).__name__}.sample: got shape {tuple(samples.shape)} for {tuple(images)} noisy "
            f"images and {draws} draws, must be {expected}; for another shape set its out_channels and scale"
        )
    return samples


def check_networks(denoiser: DirectDenoiser, noisy: Tensor, draws: Tensor) -> None:
    """Runs the student and the loss once; UserError if their shapes do not match the images and draws."""
    with forked(noisy.device), evaluating(denoiser):
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
    expected = (len(noisy), draws.shape[2] * len(denoiser.loss.outputs), *draws.shape[3:])
    if prediction.shape != expected:
        raise UserError(
            f"{type(denoiser.backbone).__name__}: gives shape {tuple(prediction.shape)}, but "
            f"{type(denoiser.loss).__name__} needs {expected}; set its out_channels to {expected[1]}"
        )
    with evaluating(denoiser), checks_of("loss"):
        denoiser.loss(prediction, denoiser.standardize_draws(draws))
