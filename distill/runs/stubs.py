"""Reads pickled checkpoints of other programs without importing or running any code that they name."""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from distill.errors import UserError, out_of_memory
from distill.files import check_readable

DEEPEST = 20  # largest depth of nested modules; published networks have 8


class Stub:
    """Stands for an object of a class that is not imported; it has the object's state, but no code."""

    def __new__(cls, *arguments: Any, **_: Any) -> "Stub":
        stub = object.__new__(cls)
        stub.__dict__["arguments"] = arguments
        return stub

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.__dict__.update(state if isinstance(state, dict) else {"state": state})

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute, or a parameter, buffer or module of that name, as stored by nn.Module."""
        homes = [self.__dict__, *(self.__dict__.get(kind) for kind in _HOMES)]
        return next((home[name] for home in homes if isinstance(home, dict) and name in home), default)

    def tensors(self, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Tensor]]:
        """Yields the entries that `state_dict` of the module would have."""
        if depth > DEEPEST:
            raise UserError(f"modules are nested more than {DEEPEST} deep; is this file trustworthy?")
        for kind in _HOMES:
            for name, value in dict(self.__dict__.get(kind) or {}).items():
                if isinstance(value, Tensor):
                    yield f"{prefix}{name}", value
                elif isinstance(value, Stub):
                    yield from value.tensors(f"{prefix}{name}.", depth + 1)


_HOMES = ("_parameters", "_buffers", "_modules")


def load_without_code(path: str | os.PathLike[str], modules: Sequence[str]) -> Any:
    """Reads a file of `torch.save`, with a Stub for every object of a class in these modules.

    It uses the restricted reader of torch (weights_only), which calls only permitted functions. Tensors and
    plain containers are read as they are, numpy scalars as Python numbers. A file that names anything else is
    refused, with that name in one line, before any of it is read. Tensors are memory maps of the file.
    """
    path = check_readable(path, "pass a checkpoint of torch.save (.ckpt)")
    try:
        names = get_unsafe_globals_in_checkpoint(path)
        _check(names, modules)
        with safe_globals([(_stand_in(name), name) for name in names]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except Exception as error:  # unpickling a damaged file raises nearly every kind
        if out_of_memory(error):
            raise MemoryError(f"{path}: {error}") from error
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise UserError(
            f"{path}: damaged, or no checkpoint that torch 1.6 or newer saved ({reason}); pass the .ckpt as "
            "it was written"
        ) from None


def _check(names: Sequence[str], modules: Sequence[str]) -> None:
    prefixes = tuple(f"{module}." for module in modules)
    foreign = [name for name in sorted(names) if name not in _NUMPY and not name.startswith(prefixes)]
    if foreign:
        raise UserError(
            f"names {foreign[0]}, which is none of the published classes and may run code; nothing was "
            "loaded; pass a checkpoint of the published training, or ask who made it for the weights alone"
        )


def _stand_in(name: str) -> Any:
    """A new Stub class for a name; every file gets its own, so that no file affects the next."""
    if name in _SCALAR:
        return _scalar
    return type(name.rpartition(".")[2], (Stub,), {})


def _scalar(dtype: Stub, data: bytes) -> Any:
    """A number that numpy pickled as its type ("f8", ...), with the byte order in the state, and bytes."""
    return np.frombuffer(data, np.dtype(dtype.get("state")[1] + dtype.get("arguments")[0]))[0].item()


_SCALAR = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
_NUMPY = {
    *_SCALAR, "numpy.dtype", "numpy.ndarray",
    "numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct",
}  # fmt: skip


def check_tensors(tensors: Mapping[Any, Any]) -> None:
    """UserError for a value of a state dict that is no tensor, or larger than its data in the file."""
    for name, value in tensors.items():
        if not isinstance(name, str) or not isinstance(value, Tensor) or value.layout != torch.strided:
            raise UserError(f"{str(name)[:100]} in its state_dict is no tensor; pass another file")
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise UserError(f"{name} claims more numbers than the file has; pass another file")
