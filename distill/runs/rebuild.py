"""Networks as their class and constructor arguments, and back."""

import importlib
import inspect
import json
from typing import Any

from torch import Tensor, nn

from distill.errors import UserError, checks_of


def describe(module: nn.Module) -> dict[str, Any] | None:
    """A module's class and constructor arguments, read from attributes of the same names.

    None where that is not possible: an argument that is not kept or is not plain data.
    """
    kind, arguments = type(module), {}
    takes_nothing = kind.__init__ is nn.Module.__init__
    try:
        for p in () if takes_nothing else inspect.signature(kind).parameters.values():
            if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) or not hasattr(module, p.name):
                return None
            arguments[p.name] = _plain(getattr(module, p.name))
        json.dumps(arguments)
    except TypeError:
        return None
    return {"class": f"{kind.__module__}.{kind.__qualname__}", "arguments": arguments}


def _plain(value: Any) -> Any:
    """An argument as JSON has it; TypeError for a module that cannot be described."""
    if isinstance(value, nn.ModuleList | list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, nn.Module):
        if (description := describe(value)) is None:
            raise TypeError(f"{type(value).__name__} cannot be described")
        return description
    return value.tolist() if isinstance(value, Tensor) else value


def rebuild(description: dict[str, Any]) -> nn.Module:
    """The module that `describe` described, with fresh weights. Only nn.Module classes are called."""
    path, _, name = description["class"].rpartition(".")
    try:
        kind = getattr(importlib.import_module(path), name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"{description['class']}: cannot be imported ({error}); install it") from None
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise UserError(f"{description['class']}: not an nn.Module; is this file trustworthy?")
    arguments = {k: _rebuild_argument(v) for k, v in description["arguments"].items()}
    try:
        with checks_of():  # a constructor's own, as for a library that is missing
            return kind(**arguments)
    except TypeError as error:  # written by a version whose constructor took other arguments
        raise UserError(f"{description['class']}: {error}; use the version that trained it") from error


def _rebuild_argument(value: Any) -> Any:
    if isinstance(value, list):
        return [_rebuild_argument(each) for each in value]
    is_module = isinstance(value, dict) and value.keys() == {"class", "arguments"}
    return rebuild(value) if is_module else value
