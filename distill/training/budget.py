"""Computes how many training steps fit into a time budget on this machine, before and while it trains."""

import copy
import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from distill.errors import UserError
from distill.hardware import Hardware, forked, synchronize
from distill.training.optimizer import Optimizer, update
from distill.training.processes import Processes
from distill.training.steps import Learn, Teach

log = logging.getLogger(__name__)
UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0}
BUDGET, BUDGET_FROM_NOTHING = "5min", "15min"  # for samplers that start from trained, or from random, weights
TRIALS = 4  # measured steps; the first is discarded, because it includes warm-up work
TO_THE_SAMPLER = 0.5  # share of the time for the steps that train both networks
ALONE = 0.25  # the same if the student does not learn from draws
ENOUGH = 300  # steps below which networks from random weights are far from what they can reach
OVERHEAD = 0.03  # share of the time for checkpoints and logs


def seconds(budget: str) -> float:
    """Converts a time such as '90s', '10min' or '1.5h' to seconds."""
    match = re.fullmatch(r"(\d+\.?\d*) *(s|min|h)", budget.strip())
    if not match or float(match[1]) <= 0:
        raise UserError(f"budget: got '{budget}', must be a time such as 90s, 10min or 1.5h")
    return float(match[1]) * UNITS[match[2]]


@dataclass
class Trial:
    """Measures training steps on copies of both networks, so that the training itself stays as it is.

    noisy: the patches of this process for one update, on the device.
    check: function that does one validation, which training runs every `validate_every` steps.
    """

    teach: Teach
    learn: Learn
    noisy: Tensor
    micro_batch: int
    hardware: Hardware
    check: Callable[[], None]
    validate_every: int
    processes: Processes

    def seconds_to_check(self) -> float:
        """Time of one validation, divided by the number of steps between two validations."""
        synchronize(self.noisy.device)
        started = time.perf_counter()
        self.check()
        synchronize(self.noisy.device)
        return (time.perf_counter() - started) / self.validate_every

    def seconds_a_step(self, co_training: bool) -> float:
        """Median time of a step of both networks, or of the student alone."""
        teach, learn = copy.deepcopy(self.teach), copy.deepcopy(self.learn)
        networks = [learn.denoiser, teach.sampler] if co_training else [learn.denoiser]
        optimizers = [Optimizer("", each, "AdamW", 0.0, "cosine", 1, 1.0) for each in networks]
        teach.sampler.train(co_training)
        times, device = [], self.noisy.device
        with forked(device):
            for _ in range(TRIALS):
                synchronize(device)
                started = time.perf_counter()
                self._step(teach, learn, optimizers)
                synchronize(device)
                times.append(time.perf_counter() - started)
        return sorted(times[1:])[(TRIALS - 1) // 2]

    def _step(self, teach: Teach, learn: Learn, optimizers: list[Optimizer]) -> None:
        """The same computations as one step of `train`."""
        for noisy in self.noisy.split(self.micro_batch):
            with self.hardware.autocast():
                targets, sampler_loss = teach(noisy)
                losses = [learn(noisy, targets)] + ([] if sampler_loss is None else [sampler_loss])
            for optimizer, loss in zip(optimizers, losses, strict=True):
                optimizer.backward(loss, len(noisy) / len(self.noisy))
        self.processes.add_up(optimizers)
        update(optimizers, 1)


def planned_steps(
    budget: str, began: float, trial: Trial, trainable: bool, from_nothing: bool, stored: dict[str, Any]
) -> tuple[int, int]:
    """Numbers of steps that fit into a budget: (of both networks, of the student alone).

    began: time.monotonic() at the start of the command, since loading data counts too.
    from_nothing: whether the sampler, or a student of a frozen one, starts from random weights.
    stored: settings of the run that is resumed, or {}. A run with the same budget keeps its numbers.
    """
    if stored.get("budget") == budget:
        return stored["steps"], stored["refine_steps"]
    check = trial.seconds_to_check()
    alone = trial.seconds_a_step(co_training=False) + check
    both = trial.seconds_a_step(co_training=True) + check if trainable else 1.0
    left = (1 - OVERHEAD) * (seconds(budget) - (time.monotonic() - began))
    share = (ALONE if trial.learn.self_supervised == 1 else TO_THE_SAMPLER) if trainable else 0.0
    steps, refine_steps = max(0, int(share * left / both)), max(1, int((1 - share) * left / alone))
    log.info("about %s: %d steps of both networks, %d of the student alone (change the time with --budget)",
             budget, steps, refine_steps)  # fmt: skip
    if from_nothing and steps + refine_steps < ENOUGH:
        log.warning(
            "%d steps are too few for networks that start from random weights, a step takes %.2g s here; "
            "pass smaller networks (such as HDN(**LIGHT) and StabilizedUNet), a longer budget, or use a GPU",
            steps + refine_steps, both if steps else alone,
        )  # fmt: skip
    return steps, refine_steps


class Pace:
    """Moves the last step while the student trains alone, so that a training ends when its budget does.

    A few steps at the start do not tell how fast a machine will be that also does other work.

    budget: time of the whole command.
    before: seconds that it took before the first step.
    total: number of steps that was planned.
    """

    def __init__(self, budget: str, before: float, total: int) -> None:
        self.end = (1 - OVERHEAD) * seconds(budget) - before
        self.total = total
        self.first: tuple[int, float] | None = None

    def last_step(self, step: int, seconds: float) -> int:
        """The last step, if those to come take as long as those since the first call did on average.

        step, seconds: where the training is, from its start.
        """
        if self.first is None:
            self.first = step, seconds
            return self.total
        steps, took = step - self.first[0], max(seconds - self.first[1], 1e-6)
        return step + max(0, int((self.end - seconds) * steps / took))
