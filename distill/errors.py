"""The exception whose message is written for users, and tests for errors of the machine."""

import errno
import linecache
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class UserError(ValueError):
    """Invalid input. The message is one line: what is wrong, what was given, what is allowed, what to do."""


@contextmanager
def checks_of(name: str = "") -> Iterator[None]:
    """Turns ValueErrors that a sampler, a student or a loss raises on purpose into UserErrors."""
    try:
        yield
    except UserError:
        raise
    except ValueError as error:
        if not _deliberate(error):
            raise
        raise UserError(f"{name}: {error}" if name else str(error)) from error


def _deliberate(error: ValueError) -> bool:
    """Whether the error comes from a `raise` statement outside of this package, torch and numpy.

    Anything else, such as values that cannot be unpacked, is a bug and shows its traceback.
    """
    *_, (frame, line) = traceback.walk_tb(error.__traceback__)
    text = linecache.getline(frame.f_code.co_filename, line)  # empty if the code was typed in
    return _package(frame) not in ("distill", "torch", "numpy") and (
        not text or text.lstrip().startswith("raise")
    )


_NO_MEMORY = re.compile(
    "out of memory|not enough memory|can(.?t|not) allocate|failed to map segment|bad_alloc|ALLOC_FAILED",
    re.IGNORECASE,
)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error of Python, numpy, torch or the system means that memory ran out."""
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    text = str(error) if isinstance(error, RuntimeError | ImportError | OSError) else ""
    return isinstance(error, MemoryError) or bool(_NO_MEMORY.search(text))


def of_the_machine(error: Exception) -> str:
    """One line on a lack of memory, space or rights. Empty for any other error, which is a bug."""
    if out_of_memory(error):
        reason = (str(error).splitlines() or ["no more is given"])[0][:200]
        return f"out of memory ({reason}); pass a smaller tile, micro_batch or image, or end other programs"
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}; check space and rights"
    return ""


def went_through(error: Exception, *packages: str) -> bool:
    """Whether an error was raised in one of these packages, or in code that they called."""
    return any(_package(frame) in packages for frame, _ in traceback.walk_tb(error.__traceback__))


def _package(frame: FrameType) -> str:
    return frame.f_globals.get("__name__", "").partition(".")[0]
