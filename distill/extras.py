"""Imports packages that only some users need."""

import importlib
from typing import Any

from distill.errors import UserError


def extra(package: str, name: str, where: str) -> Any:
    """Imports a package of an extra. UserError if it is not installed. where: the feature that needs it."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise UserError(
            f"{where}: needs the package {package} ({error}); pip install 'posterior-distill[{name}]'"
        ) from error
