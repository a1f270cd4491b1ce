"""How far a run has come: the checkpoint that it goes on from, and its metrics.jsonl."""

import json
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from distill.errors import UserError
from distill.runs import tensors as files
from distill.training.logs import Log
from distill.training.optimiser import Optimiser


class Progress:
    """Everything that a stopped run needs to go on exactly as if it had not stopped."""

    def __init__(
        self, out: Path, settings: dict[str, Any], modules: dict[str, nn.Module],
        optimisers: list[Optimiser], generator: np.random.Generator, log: list[Log] | None = None,
    ) -> None:  # fmt: skip
        self.logs = log or []
        self.out, self.settings, self.modules = out, settings, modules
        self.optimisers, self.generator = optimisers, generator
        self.step, self.seconds, self.best, self.stale = 0, 0.0, float("inf"), 0

    @property
    def path(self) -> Path:
        return self.out / "checkpoint.safetensors"

    def save(self) -> None:
        tensors = {"torch_rng": torch.get_rng_state()}
        if torch.cuda.is_available():
            tensors["cuda_rng"] = torch.cuda.get_rng_state()
        for role, module in self.modules.items():
            tensors |= {f"{role}.{name}": value for name, value in module.state_dict().items()}
        header: dict[str, Any] = {
            "settings": self.settings,
            "rng": self.generator.bit_generator.state,
        }
        header |= {k: getattr(self, k) for k in ("step", "seconds", "best", "stale")}
        for optimiser in self.optimisers:
            optimiser_tensors, header[optimiser.name] = optimiser.state()
            tensors |= optimiser_tensors
        files.save(self.path, tensors, header)

    def resume(self) -> None:
        """Takes up the checkpoint in the run's folder, if there is one; else makes the folder."""
        if not self.path.exists():
            self.out.mkdir(parents=True, exist_ok=True)
            return
        tensors, header = files.load(self.path)
        self._check(header["settings"])
        for role, module in self.modules.items():
            start = f"{role}."
            module.load_state_dict(
                {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}
            )
        for optimiser in self.optimisers:
            optimiser.restore(tensors, header[optimiser.name])
        self.generator.bit_generator.state = header["rng"]
        torch.set_rng_state(tensors["torch_rng"])
        if torch.cuda.is_available() and "cuda_rng" in tensors:
            torch.cuda.set_rng_state(tensors["cuda_rng"])
        for key in ("step", "seconds", "best", "stale"):
            setattr(self, key, header[key])
        self._forget_after(self.step)

    def _check(self, stored: dict[str, Any]) -> None:
        now = json.loads(json.dumps(self.settings))
        for key in now.keys() | stored.keys():
            if now.get(key) != stored.get(key):
                raise UserError(
                    f"{self.out}: holds a run with {key}={stored.get(key)}, now {now.get(key)}; pass "
                    "another --out for a new run, or the same settings to go on with the old one"
                )

    def _forget_after(self, step: int) -> None:
        """Drops the metrics of steps that the checkpoint does not know of: they will come again."""
        metrics = self.out / "metrics.jsonl"
        if metrics.exists():
            lines = metrics.read_text().splitlines(keepends=True)
            metrics.write_text("".join(line for line in lines if json.loads(line)["step"] <= step))

    def log(self, row: dict[str, Any]) -> None:
        with open(self.out / "metrics.jsonl", "a") as file:
            file.write(json.dumps(row) + "\n")
        for log in self.logs:
            log(row)

    def validated(self, student_loss: float) -> None:
        """Counts the validations since the best student."""
        self.stale = 0 if student_loss < self.best else self.stale + 1
        self.best = min(self.best, student_loss)


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collects Ctrl-C and a cluster's SIGTERM in a list, so that the step in hand is finished and
    the checkpoint whole. A second one interrupts at once."""
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
