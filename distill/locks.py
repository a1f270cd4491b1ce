"""Locks that let one process at a time work in a folder."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from distill.errors import UserError


@contextmanager
def locked(folder: str | os.PathLike, command: str) -> Iterator[None]:
    """Prevents other processes from running `command` in the folder during the block; makes the folder.

    The operating system releases the lock when the process ends, so a killed process does not block others.
    Raises UserError if another process has the lock, or if the folder cannot be written to.
    """
    path = Path(folder) / f".{command}.lock"
    lock = FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(
            f"{folder}: another distill {command} is running there; wait until it ends, or pass another --out"
        ) from None
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{folder}: cannot be written to ({reason}); check space and rights") from error
    try:
        yield
    finally:
        with suppress(OSError):  # Windows removes it on release; filelock detects removed files
            path.unlink()
        lock.release()
