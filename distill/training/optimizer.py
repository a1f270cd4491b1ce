"""The optimizer of one network, with its learning rate schedule and its checks of gradients."""

import logging
import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from distill.errors import UserError

log = logging.getLogger(__name__)
Schedule = Literal["cosine", "plateau"]
MAX_SKIPPED = 10  # steps in a row; a run that does not recover by then has diverged


class Optimizer:
    """A torch optimizer with a learning rate schedule that skips steps with a loss or gradient of NaN or inf.

    name: "sampler" or "student", for metrics, checkpoints and messages.
    module: the network.
    kind: name of a class in torch.optim.
    lr: highest learning rate.
    schedule: "cosine" (linear warm-up over 5 % of `total` steps, then a half cosine to zero) or "plateau"
        (half the learning rate after 10 validations without improvement, as published).
    total: number of steps.
    clip: largest norm of the gradient; None for no clipping.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        kind: str,
        lr: float,
        schedule: Schedule,
        total: int,
        clip: float | None,
    ) -> None:
        self.name, self.module, self.clip = name, module, clip or math.inf
        self.total = total  # may change while it trains
        self.loss: Tensor | float = 0.0  # of the micro-batches of this step so far
        self.skipped, self.in_a_row, self.patience = 0, 0, min(MAX_SKIPPED, total)
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        # A forward pass changes buffers (batch norm statistics, warm-up counters) before the loss is known,
        # so a skipped step has to restore them.
        self.buffers = [b for b in module.buffers() if b.dtype != torch.bool]
        self.sound = [b.clone() for b in self.buffers]
        options: dict[str, Any] = {"lr": lr}
        if kind == "AdamW":
            options |= {"betas": (0.9, 0.99), "weight_decay": 0.0, "fused": True}
        self.optimizer = getattr(torch.optim, kind)(self.parameters, **options)
        if schedule == "cosine":
            self.schedule = torch.optim.lr_scheduler.LambdaLR(
                self.optimizer, lambda step: warmup_cosine(step, self.total)
            )
        else:
            self.schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(
                self.optimizer, factor=0.5, patience=10, min_lr=1e-12
            )

    @property
    def lr(self) -> float:
        return self.optimizer.param_groups[0]["lr"]

    def backward(self, loss: Tensor, share: float) -> None:
        """Adds the gradient of a micro-batch that is the fraction `share` of the batch."""
        (loss * share).backward()
        self.loss = self.loss + loss.detach() * share

    def check(self) -> tuple[float, str]:
        """Clips the gradient -> the loss of the batch, and a text about what is not finite, or ""."""
        loss, self.loss = float(self.loss), 0.0
        norm = float(nn.utils.clip_grad_norm_(self.parameters, self.clip))
        for what, value in (("loss", loss), ("gradient", norm)):
            if not math.isfinite(value):
                return loss, f"the {self.name}'s {what} is {value}"
        return loss, ""

    def step(self) -> None:
        """Updates the weights and, with a cosine schedule, the learning rate."""
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if isinstance(self.schedule, torch.optim.lr_scheduler.LambdaLR):
            self.schedule.step()
        self._keep()

    def skip(self, step: int) -> None:
        """Restores the network to its state before this step. Only the learning rate moves on."""
        self.optimizer.zero_grad(set_to_none=True)
        for buffer, sound in zip(self.buffers, self.sound, strict=True):
            buffer.copy_(sound)
        self.go_to(step)
        self.skipped += 1
        self.in_a_row += 1

    def _keep(self) -> None:
        for buffer, sound in zip(self.buffers, self.sound, strict=True):
            sound.copy_(buffer)
        self.in_a_row = 0

    def validated(self, loss: float | None) -> None:
        """Passes the validation loss of this network to a plateau schedule."""
        if isinstance(self.schedule, torch.optim.lr_scheduler.ReduceLROnPlateau) and loss is not None:
            self.schedule.step(loss)

    def go_to(self, step: int) -> None:
        """Sets the cosine schedule's learning rate of `step`, for a run that resumes with another length."""
        if isinstance(self.schedule, torch.optim.lr_scheduler.LambdaLR):
            self.schedule.last_epoch = step
            for group, lr, rate in zip(
                self.optimizer.param_groups, self.schedule.base_lrs, self.schedule.lr_lambdas, strict=True
            ):
                group["lr"] = lr * rate(step)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The state for a checkpoint: (tensors, JSON data)."""
        state = self.optimizer.state_dict()
        tensors = {
            f"{self.name}_optimizer.{i}.{key}": torch.as_tensor(value)
            for i, values in state["state"].items()
            for key, value in values.items()
        }
        data = {"groups": state["param_groups"], "schedule": _plain(self.schedule), "skipped": self.skipped}
        return tensors, data

    def restore(self, tensors: dict[str, Tensor], data: dict[str, Any]) -> None:
        """Sets the state that `state` returned."""
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            prefix, _, rest = name.partition(".")
            if prefix == f"{self.name}_optimizer":
                i, _, key = rest.partition(".")
                state.setdefault(int(i), {})[key] = value
        self.optimizer.load_state_dict({"state": state, "param_groups": data["groups"]})
        for parameter, values in self.optimizer.state.items():
            for key, value in values.items():
                if value.shape == parameter.shape:  # the fused AdamW needs the memory layout of the parameter
                    values[key] = torch.empty_like(parameter).copy_(value)
        self.schedule.load_state_dict(data["schedule"])
        self.skipped = data.get("skipped", 0)
        self._keep()  # the network's buffers were restored before


def update(optimizers: list[Optimizer], step: int) -> dict[str, float]:
    """Updates all networks -> their losses, or no network -> {} if a loss or gradient is not finite.

    All networks skip the step together, because the student learns from draws of the sampler. Raises
    UserError after MAX_SKIPPED skipped steps in a row.
    """
    checks = [each.check() for each in optimizers]
    broken = next((what for _, what in reversed(checks) if what), "")  # the sampler's is the cause of both
    if not broken:
        for each in optimizers:
            each.step()
        return {f"{each.name}_loss": loss for each, (loss, _) in zip(optimizers, checks, strict=True)}
    for each in optimizers:
        each.skip(step)
    if any(each.in_a_row >= each.patience for each in optimizers):
        rates = ", ".join(f"{each.lr:.2g} for the {each.name}" for each in optimizers)
        raise UserError(
            f"step {step}: {broken}; the last {optimizers[0].in_a_row} steps updated nothing. "
            f"Lower lr (now {rates}), set clip (now {optimizers[0].clip:g}), or check the images"
        )
    log.warning("step %d: %s; the step was skipped and updated nothing", step, broken)
    return {}


def careful(lr: float, pixels: int) -> float:
    """A lower learning rate for pretrained weights and images of fewer than 2 million pixels.

    At a rate that improves the weights on 50 frames of 512x512 pixels, a single image of 256x256 makes them
    worse; at a fifth of that rate it improves them.
    """
    return lr * min(1.0, pixels / 2e6) ** 0.5


def warmup_cosine(step: int, total: int) -> float:
    """Factor of the learning rate at `step`: linear warm-up over 5 % of `total`, then a half cosine to 0."""
    warmup = max(1, total // 20)
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return 0.5 * (1 + math.cos(math.pi * progress))


def _plain(schedule: Any) -> dict[str, Any]:
    """The state of a schedule without functions: JSON cannot hold them, and loading needs none."""
    simple = (int, float, str, bool, list, type(None))
    return {k: v for k, v in schedule.state_dict().items() if isinstance(v, simple)}
