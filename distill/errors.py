"""The one exception that users are meant to read."""

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """Bad input. The text says what, got, allowed, and what to do, in one line."""


@contextmanager
def checks_of(name: str) -> Iterator[None]:
    """What a sampler or a loss itself finds wrong, a ValueError, is the user's to read."""
    try:
        yield
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{name}: {error}") from error
