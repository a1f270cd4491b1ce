"""One process at a time in a folder."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from distill.errors import UserError


@contextmanager
def locked(folder: str | os.PathLike, command: str) -> Iterator[None]:
    """No other process runs `command` in the folder inside; makes the folder if there is none.

    The operating system holds the lock and drops it with the process, so one that was killed blocks nobody.
    Raises UserError where another has it, or where the folder cannot be written to.
    """
    path = Path(folder) / f".{command}.lock"
    lock = FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(
            f"{folder}: another distill {command} is at work there; wait until it ends, or pass another --out"
        ) from None
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{folder}: cannot be written to ({reason}); check space and rights") from error
    try:
        yield
    finally:
        with suppress(OSError):  # Windows removes it on release; filelock knows a removed file from a new one
            path.unlink()
        lock.release()
