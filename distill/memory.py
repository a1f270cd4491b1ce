"""How much memory is free, before much is asked for: a system that has promised too much ends programs."""

import re
from collections.abc import Iterator
from pathlib import Path

from distill.errors import UserError

LIMITED = {"": ("memory.max", "memory.current"), "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes")}
"""Folder of control groups, of version 2 and 1: the files with the limit and with what is used."""


def free_memory(root: Path = Path("/")) -> float:
    """Bytes that the machine has, or less where a container or a cluster allows less; infinite where nothing
    tells."""
    found = re.search(r"MemAvailable: +(\d+) kB", _text(root / "proc/meminfo"))
    machine = 1024.0 * int(found[1]) if found else float("inf")
    return min([machine, *_left_in_groups(root)])


def check_memory(size: float, name: str, advice: str) -> None:
    """A UserError where `size` bytes are not free."""
    free = free_memory()
    if size > free:
        raise UserError(
            f"{name}: needs {size / 1e9:.3g} GB of memory, {max(free, 0) / 1e9:.3g} GB are free; {advice}"
        )


def _left_in_groups(root: Path) -> Iterator[float]:
    """What each control group leaves that this process is in. Pages of files count as free: they can go."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, kind, name = line.split(":", 2)
        parts = name.strip("/").split("/")
        for depth in range(len(parts) + 1) if kind in LIMITED else ():
            group = (root / "sys/fs/cgroup" / kind).joinpath(*parts[:depth])
            limit, used = (_text(group / file).strip() for file in LIMITED[kind])
            if limit.isdigit() and used.isdigit():  # "max" is no limit
                files = re.findall(r"^(?:in)?active_file (\d+)", _text(group / "memory.stat"), re.MULTILINE)
                yield float(int(limit) - int(used) + sum(map(int, files)))


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
