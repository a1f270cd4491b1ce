"""Default learning rates and lengths of `train`, which depend on the networks."""

import os

from torch import nn

from distill.errors import UserError
from distill.runs.checkpoint import has_student
from distill.training.budget import BUDGET, BUDGET_FROM_NOTHING
from distill.training.optimizer import careful
from samplers import PosteriorSampler
from samplers.base import LEARNING_RATE

Init = str | os.PathLike[str]


def starts_trained(network: nn.Module, init: Init) -> bool:
    """Whether `init` gives this network trained weights."""
    return init not in ("none", "pretrained") or (
        init == "pretrained" and hasattr(network, "load_pretrained")
    )


def default_rates(
    lr: float | None,
    student_lr: float | None,
    sampler: PosteriorSampler,
    student: nn.Module,
    init: Init,
    pixels: int,
) -> tuple[float, float]:
    """(lr, student_lr). Defaults depend on the networks, their initial weights and the number of pixels."""
    if student_lr is None:
        rate = LEARNING_RATE if lr is None else lr
        start = init if init == "none" or has_student(init) else "pretrained"
        student_lr = careful(rate / 4, pixels) if starts_trained(student, start) else rate / 2
    if lr is None:
        rate = sampler.learning_rate
        lr = careful(rate / 4, pixels) if starts_trained(sampler, init) else rate
    return lr, student_lr


def default_length(
    steps: int | None, refine_steps: int | None, budget: str | None, sampler: PosteriorSampler, init: Init
) -> tuple[int, int, str | None]:
    """(steps, refine_steps, budget). A budget is the default, and replaces both if no steps are passed."""
    if steps is None and refine_steps is None:
        budget = budget or (BUDGET if starts_trained(sampler, init) else BUDGET_FROM_NOTHING)
    elif budget:
        raise UserError("budget: got steps as well; pass either budget, or steps and refine_steps")
    return 600 if steps is None else steps, 1000 if refine_steps is None else refine_steps, budget
