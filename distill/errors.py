"""The one exception that users are meant to read."""


class UserError(ValueError):
    """Bad input. The text says what, got, allowed, and what to do, in one line."""
