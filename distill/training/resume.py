"""The state of a training in its checkpoint, from which a stopped or longer run resumes."""

import json
import math
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distill.errors import UserError
from distill.hardware import device_state, set_device_state
from distill.locks import locked
from distill.runs import checkpoint
from distill.runs import tensors as files
from distill.runs.rebuild import is_description
from distill.training.logs import Metrics
from distill.training.optimizer import Optimizer
from distill.training.processes import Processes

CHECKPOINT = "checkpoint.safetensors"
MUST_MATCH = ("context", "conditions", "data", "networks", "batch_size", "patch_size", "draws", "optimizer",
              "lr", "student_lr", "schedule", "clip", "ema", "val_fraction", "seed", "self_supervised",
              "processes")  # fmt: skip
"""Settings that a resumed run must share. Others do not change what a step does; steps may only grow."""


@dataclass
class State:
    """All that a stopped run needs to continue exactly as without the stop."""

    modules: dict[str, nn.Module]  # by role: sampler, student, average
    optimizers: list[Optimizer]
    generator: np.random.Generator  # of the patches
    processes: Processes
    device: torch.device  # of the networks
    step: int = 0
    seconds: float = 0.0
    best: float = math.inf  # least validation loss
    stale: int = 0  # validations since the least loss

    def validated(self, student_loss: float) -> None:
        self.stale = 0 if student_loss < self.best else self.stale + 1
        self.best = min(self.best, student_loss)

    def save(self, out: Path, settings: dict[str, Any]) -> None:
        """Writes the checkpoint. All processes call it; the first one writes while the others wait."""
        states = self.processes.gather(_random_states(self.device))
        if self.processes.main:
            self._write(out / CHECKPOINT, settings, states)
        self.processes.gather(None)

    def _write(self, path: Path, settings: dict[str, Any], states: list[dict[str, Tensor]]) -> None:
        tensors = {_of_process(rank, name): v for rank, each in enumerate(states) for name, v in each.items()}
        for role, module in self.modules.items():
            tensors |= {f"{role}.{name}": value for name, value in module.state_dict().items()}
        header: dict[str, Any] = {"settings": settings, "rng": self.generator.bit_generator.state}
        header |= {key: getattr(self, key) for key in _NUMBERS}
        for optimizer in self.optimizers:
            moments, header[optimizer.name] = optimizer.state()
            tensors |= moments
        files.save(path, tensors, header)

    def restore(self, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
        """Sets the state from the content of a checkpoint."""
        for role, module in self.modules.items():
            start = f"{role}."
            own = {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}
            checkpoint.load_state(CHECKPOINT, module, own)
        for optimizer in self.optimizers:
            optimizer.restore(tensors, header[optimizer.name])
        self.generator.bit_generator.state = header["rng"]
        torch.set_rng_state(tensors[_of_process(self.processes.rank, "torch_rng")])
        of_device = tensors.get(_of_process(self.processes.rank, f"{self.device.type}_rng"))
        if of_device is not None:  # None on a CPU, and if the run was trained on another kind of device
            set_device_state(self.device, of_device)
        for key in _NUMBERS:
            setattr(self, key, header[key])


_NUMBERS = ("step", "seconds", "best", "stale")


def _random_states(device: torch.device) -> dict[str, Tensor]:
    of_device = device_state(device)
    states = {"torch_rng": torch.get_rng_state()}
    return states if of_device is None else states | {f"{device.type}_rng": of_device}


def _of_process(rank: int, name: str) -> str:
    return f"{name}.{rank}" if rank else name


@contextmanager
def resumed(out: Path, state: State, settings: dict[str, Any], metrics: Metrics) -> Iterator[None]:
    """Locks the run's folder for this training, and sets the state and the metrics to its last checkpoint."""
    processes = state.processes
    with locked(out, "train") if processes.main else nullcontext():
        processes.gather(None)  # the others wait for the lock
        _resume(out, state, settings)
        if len(steps := set(processes.gather(state.step))) > 1:
            raise UserError(f"{out}: processes find different checkpoints there, of steps {sorted(steps)}; "
                            "pass a folder that all machines share")  # fmt: skip
        if processes.main:
            metrics.forget_after(state.step)
        yield


def check_resumable(out: Path) -> None:
    """UserError if a training would overwrite a finished run without a checkpoint."""
    results = [name for name in ("student.safetensors", "sampler.safetensors") if (out / name).exists()]
    if results and not (out / CHECKPOINT).exists():
        raise UserError(
            f"{out}: holds {' and '.join(results)} of a run, but no {CHECKPOINT} to resume it from; pass "
            "another --out, or delete that folder"
        )


def _resume(out: Path, state: State, settings: dict[str, Any]) -> None:
    """Restores the state from the checkpoint in the run's folder, if there is one."""
    check_resumable(out)
    if not (out / CHECKPOINT).exists():
        return
    tensors, header = files.load(out / CHECKPOINT, checkpoint.CHECKPOINT_HEADER)
    stored, now = {"processes": 1} | checkpoint.settings(header), json.loads(json.dumps(settings))
    for key in MUST_MATCH:
        if key in stored and stored[key] != _of_then(now[key], stored[key]):
            raise UserError(
                f"{out}: holds a run with {key}={stored[key]}, but got {now[key]}; pass another --out for a "
                "new run, or the same settings to resume the old one"
            )
    co_training = len(state.optimizers) > 1
    step = _resumed_step(out, header["step"], stored, now, co_training)
    try:
        state.restore(tensors, header)
    except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"{out / CHECKPOINT}: does not fit these networks ({reason}); pass another --out, or train with "
            "the version that wrote it"
        ) from error
    if any(stored[key] != now[key] for key in ("steps", "refine_steps")):
        state.step = step
        for optimizer in state.optimizers:
            optimizer.go_to(step)


def _of_then(now: Any, stored: Any) -> Any:
    """Settings without arguments of networks that the version of the stored settings did not have."""
    if isinstance(now, list):
        known = stored if isinstance(stored, list) and len(stored) == len(now) else now
        return [_of_then(*each) for each in zip(now, known, strict=True)]
    if isinstance(now, dict) and is_description(now) and is_description(stored):
        known = stored["arguments"]
        own = {k: _of_then(v, known[k]) for k, v in now["arguments"].items() if k in known}
        return {**now, "arguments": own}
    return now


def stored_settings(out: Path) -> dict[str, Any]:
    """Settings in the checkpoint of a run's folder; {} without a checkpoint."""
    if not (out / CHECKPOINT).exists():
        return {}
    return checkpoint.settings(files.load(out / CHECKPOINT, checkpoint.CHECKPOINT_HEADER)[1])


def _resumed_step(out: Path, step: int, stored: dict, now: dict, co_training: bool) -> int:
    """The step from which a run resumes, which may have other `steps` and `refine_steps` than before.

    With more `steps` after a refinement, the co-training continues from its end, and the refinement is
    repeated with the better sampler. Raises UserError for fewer steps than the run already has.
    """
    if co_training and step > stored["steps"] and now["steps"] > stored["steps"]:
        step = stored["steps"]
    total = now["steps"] + now["refine_steps"]
    if total < step or (co_training and now["steps"] < min(step, stored["steps"])):
        raise UserError(
            f"{out}: holds a run at step {step} of {stored['steps']} + {stored['refine_steps']}, but got "
            f"{now['steps']} + {now['refine_steps']} steps; pass at least as many, or another --out"
        )
    return step


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collects SIGINT (Ctrl-C) and SIGTERM (of a cluster) in a list instead of stopping at once.

    So the current step is finished and the checkpoint is complete. A second signal interrupts immediately.
    """
    received: list[int] = []

    def receive(number: int, frame: Any) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield received  # only the main thread may set handlers
        return
    former = {number: signal.signal(number, receive) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
