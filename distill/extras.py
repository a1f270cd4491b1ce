"""Packages that only some users need."""

import importlib
from typing import Any

from distill.errors import UserError


def extra(package: str, name: str, where: str) -> Any:
    """The package, of the extra of this name; a UserError where it is not installed. where: what needs it."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise UserError(
            f"{where}: needs the package {package} ({error}); pip install 'posterior-distill[{name}]'"
        ) from error
