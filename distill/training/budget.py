"""How many steps a number of minutes buys on this machine."""

import copy
import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from distill.errors import UserError
from distill.hardware import Hardware, synchronize
from distill.training.optimizer import Optimizer, update
from distill.training.processes import Processes
from distill.training.steps import Learn, Teach

log = logging.getLogger(__name__)
UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0}
BUDGET, BUDGET_FROM_NOTHING = "5min", "15min"  # for a sampler that starts from trained weights, or from none
TRIALS = 4  # the first, which warms up, does not count
TO_THE_SAMPLER = 0.5  # share of the time in which both networks learn
ALONE = 0.25  # the same, where the student does not learn from draws
OVERHEAD = 0.03  # checkpoints and logs


def seconds(budget: str) -> float:
    """'90s', '10min', '1.5h' -> seconds."""
    found = re.fullmatch(r"(\d+\.?\d*) *(s|min|h)", budget.strip())
    if not found or float(found[1]) <= 0:
        raise UserError(f"budget: got '{budget}', must be a time such as 90s, 10min or 1.5h")
    return float(found[1]) * UNITS[found[2]]


@dataclass
class Trial:
    """Updates of copies of both networks: no weight and no random number of the training changes.

    noisy: this process's patches of one update, on the device. check: what is done every `validate_every`
    steps.
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
        """What a check costs each of the steps between two of them."""
        synchronize(self.noisy.device)
        started = time.perf_counter()
        self.check()
        synchronize(self.noisy.device)
        return (time.perf_counter() - started) / self.validate_every

    def seconds_a_step(self, co_training: bool) -> float:
        teach, learn = copy.deepcopy(self.teach), copy.deepcopy(self.learn)
        networks = [learn.denoiser, teach.sampler] if co_training else [learn.denoiser]
        optimizers = [Optimizer("", each, "AdamW", 0.0, "cosine", 1, 1.0) for each in networks]
        teach.sampler.train(co_training)
        times, device = [], self.noisy.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            for _ in range(TRIALS):
                synchronize(device)
                started = time.perf_counter()
                self._step(teach, learn, optimizers)
                synchronize(device)
                times.append(time.perf_counter() - started)
        return sorted(times[1:])[(TRIALS - 1) // 2]

    def _step(self, teach: Teach, learn: Learn, optimizers: list[Optimizer]) -> None:
        """As in `train`."""
        for noisy in self.noisy.split(self.micro_batch):
            with self.hardware.autocast():
                targets, sampler_loss = teach(noisy)
                losses = [learn(noisy, targets)] + ([] if sampler_loss is None else [sampler_loss])
            for optimizer, loss in zip(optimizers, losses, strict=True):
                optimizer.backward(loss, len(noisy) / len(self.noisy))
        self.processes.add_up(optimizers)
        update(optimizers, 1)


def planned_steps(
    budget: str, began: float, trial: Trial, trainable: bool, stored: dict[str, Any]
) -> tuple[int, int]:
    """(steps of both networks, steps of the student alone) that fit into a budget.

    began: time.monotonic() at the start of the command. stored: settings of the run that is resumed, if
    any; one of the same budget keeps its plan.
    """
    if stored.get("budget") == budget:
        return stored["steps"], stored["refine_steps"]
    check = trial.seconds_to_check()
    alone = trial.seconds_a_step(co_training=False) + check
    both = trial.seconds_a_step(co_training=True) + check if trainable else 1.0
    left = (1 - OVERHEAD) * (seconds(budget) - (time.monotonic() - began))
    share = (ALONE if trial.learn.self_supervised == 1 else TO_THE_SAMPLER) if trainable else 0.0
    steps, refine_steps = max(0, int(share * left / both)), max(1, int((1 - share) * left / alone))
    log.info("about %s: %d steps of both networks, %d of the student alone (--budget takes another time)",
             budget, steps, refine_steps)  # fmt: skip
    return steps, refine_steps
