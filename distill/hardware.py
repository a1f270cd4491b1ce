"""The devices of this machine, and the precision that is fast on them."""

import ctypes
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from distill.errors import UserError
from students.dimensions import as_channels_last

Precision = Literal["auto", "bf16", "fp32"]


class Hardware:
    """The device on which a command computes, and the precision of its arithmetic there.

    Args:
        device: name of the device. Default: the best available one of cuda, mps and cpu.
        precision: "auto" (bf16 if the hardware has it), "bf16" or "fp32".
    """

    def __init__(self, device: str | None = None, precision: Precision = "auto") -> None:
        if precision not in ("auto", "bf16", "fp32"):
            raise UserError(f"precision: got '{precision}', allowed are auto, bf16, fp32")
        self.device, self.precision = _device(device), precision

    def autocast(self) -> AbstractContextManager:
        bf16 = self.precision == "bf16" or (self.precision == "auto" and has_fast_bf16(self.device))
        return torch.autocast(self.device.type, torch.bfloat16, enabled=bf16)

    def for_training(self, dims: int) -> "Hardware":
        """The same for networks of `dims` spatial axes, whose gradients are right.

        Volumes are trained in float32 on a CPU: the gradients that oneDNN 3.12 computes in bf16 for the
        weights of 3-D convolutions are wrong, up to 1e36, where a map has few planes. Errors: bf16 there.
        """
        if dims == 2 or self.device.type != "cpu":
            return self
        if self.precision == "bf16":
            raise UserError(
                "precision: got bf16, but volumes are trained in fp32 on a CPU, whose gradients are wrong in "
                "bf16; pass fp32 or auto"
            )
        return Hardware("cpu", "fp32")

    def put(self, images: Tensor) -> Tensor:
        """Images (B, C, *S) on the device, in the layout that is fastest for its convolutions."""
        return as_channels_last(images.to(self.device))


def _device(name: str | None) -> torch.device:
    has = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name is None:
        return torch.device(next(kind for kind, available in has.items() if available))
    allowed = ", ".join(kind for kind, available in has.items() if available)
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"device: got '{name}', this machine has {allowed}") from None
    if not has.get(device.type) or (
        device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()
    ):
        raise UserError(f"device: '{name}' is not available, this machine has {allowed}")
    return device


def has_fast_bf16(device: torch.device) -> bool:
    """Whether the device has bfloat16 instructions; emulated, it is many times slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        query = getattr(torch.cpu, "_is_avx512_bf16_supported", None)  # torch >= 2.6, x86
        return bool(query and query())
    return False


@contextmanager
def seeded(device: torch.device, *numbers: int) -> Iterator[None]:
    """Seeds torch within the block by these integers, and restores its random state afterwards."""
    with forked(device):
        seed_all(*numbers)
        yield


@contextmanager
def forked(device: torch.device) -> Iterator[None]:
    """Restores torch's random state, on the CPU and on this device, after the block."""
    state = device_state(device)
    with torch.random.fork_rng([]):
        try:
            yield
        finally:
            if state is not None:
                set_device_state(device, state)


def device_state(device: torch.device) -> Tensor | None:
    """The random state of a GPU; None for a CPU."""
    if device.type == "cuda":
        return torch.cuda.get_rng_state(device)
    return torch.mps.get_rng_state() if device.type == "mps" else None


def set_device_state(device: torch.device, state: Tensor) -> None:
    """Sets the random state of a GPU."""
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.mps.set_rng_state(state)


def cores() -> int:
    """Number of CPU cores that this process may use; a cluster may grant fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def seed_all(*numbers: int) -> None:
    """Seeds torch on all devices by these integers."""
    torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]))


def synchronize(device: torch.device) -> None:
    """Waits until the device has finished its work, so that a clock can be read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def working_memory(work: Callable[[], object], device: torch.device) -> float:
    """Peak memory of `work` in MB, beyond the memory in use before; NaN if it cannot be measured."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return (torch.cuda.max_memory_allocated(device) - before) / 1e6
    if device.type != "cpu" or not Path("/proc/self/clear_refs").exists():
        return float("nan")
    _trim()  # otherwise memory that glibc keeps would be reused and not measured
    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    except OSError:
        return float("nan")
    before = _status("VmHWM")
    work()
    return _status("VmHWM") - before


def _status(key: str) -> float:
    """The value of a line of /proc/self/status in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1.024e-3 * float(line.split()[1]) for line in lines if line.startswith(key))


def keep_freed_memory() -> None:
    """Makes glibc keep freed memory. Call it in programs; a library should not change this.

    glibc returns every large block to the kernel when a layer frees it, and the next layer has to get new
    pages: one draw of 512 x 512 pixels took 1.4 times as long, the U-Net 1.3 times.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):  # not in musl
            libc.mallopt(-3, 2**30)  # M_MMAP_THRESHOLD
            libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def _trim() -> None:
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):  # not in musl
        libc.malloc_trim(0)
