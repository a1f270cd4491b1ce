"""Checks free memory before large allocations, because systems that run out of memory end programs."""

import re
from collections.abc import Iterator
from pathlib import Path

import torch

from distill.errors import UserError

LIMITED = {"": ("memory.max", "memory.current"), "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes")}
"""Folder of control groups, version 2 and 1: the files with the limit and with the memory in use."""


def free_memory(root: Path = Path("/")) -> float:
    """Free memory in bytes, within the limits of a container or a cluster; infinite if it is unknown."""
    match = re.search(r"MemAvailable: +(\d+) kB", _text(root / "proc/meminfo"))
    machine = 1024.0 * int(match[1]) if match else float("inf")
    return min([machine, *_left_in_groups(root)])


def as_bytes(size: str | float) -> float:
    """A size such as 2e9, "2GB" or "500 MB" as a number of bytes."""
    match = re.fullmatch(r"\s*([\d.]+)\s*([KMGT]?)i?B?\s*", str(size), re.IGNORECASE)
    try:
        power = " KMGT".index(match[2].upper() or " ") if match else 0
        value = float(match[1] if match else size) * 1000.0**power
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise UserError(f"memory: got {size!r}; pass a size such as 2GB or 500MB")
    return value


def free_on(device: torch.device) -> float:
    """Free memory in bytes for work on a device: of the machine, or of a CUDA device if that is less."""
    on_device = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else float("inf")
    return min(free_memory(), on_device)


def check_memory(size: float, name: str, advice: str) -> None:
    """UserError if less than `size` bytes are free."""
    free = free_memory()
    if size > free:
        raise UserError(
            f"{name}: needs {size / 1e9:.3g} GB of memory, {max(free, 0) / 1e9:.3g} GB are free; {advice}"
        )


def _left_in_groups(root: Path) -> Iterator[float]:
    """Free memory of each control group of this process. File pages count as free, as they can be dropped."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, kind, name = line.split(":", 2)
        parts = name.strip("/").split("/")
        for depth in range(len(parts) + 1) if kind in LIMITED else ():
            group = (root / "sys/fs/cgroup" / kind).joinpath(*parts[:depth])
            limit, used = (_text(group / file).strip() for file in LIMITED[kind])
            if limit.isdigit() and used.isdigit():  # "max" means no limit
                files = re.findall(r"^(?:in)?active_file (\d+)", _text(group / "memory.stat"), re.MULTILINE)
                yield float(int(limit) - int(used) + sum(map(int, files)))


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
