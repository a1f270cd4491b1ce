"""Describes networks by their class and constructor arguments, and rebuilds them."""

import importlib
import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

import losses
import samplers
import students
from distill.denoiser import DirectDenoiser
from distill.errors import UserError, checks_of
from samplers import NoiseModel

LARGEST = 10**6  # largest whole-numbered argument of a network; constructors loop over some of them


def describe(module: nn.Module) -> dict[str, Any] | None:
    """The class and constructor arguments of a module, read from attributes of the same names.

    Returns None if an argument is not an attribute or not plain data.
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
    return {"class": _name(kind), "arguments": arguments}


def _plain(value: Any) -> Any:
    """An argument in the terms of JSON. TypeError for a module that cannot be described."""
    if isinstance(value, nn.ModuleList | list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, nn.Module):
        if (description := describe(value)) is None:
            raise TypeError(f"{type(value).__name__} cannot be described")
        return description
    return value.tolist() if isinstance(value, Tensor) else value


def rebuild(
    description: Any, trust: str | Sequence[str] = (), weights: Mapping[str, Tensor] | None = None
) -> nn.Module:
    """Builds the module of a description by `describe`, with fresh weights.

    A file may name only classes of this package, because importing any other module runs its code.

    Args:
        trust: further modules or packages whose classes the file may name.
        weights: weights in the file; a far larger network is refused before it is built.
    """
    check(description, trust)
    with _not_far_beyond(weights) if weights is not None else nullcontext():
        return _build(description)


@contextmanager
def _not_far_beyond(weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Stops a constructor that makes far more parameters than there are weights.

    A header can ask for any number and size. The limit is generous, because some parameters of an encoder are
    dropped when it is built.
    """
    tensors, elements = 20 * len(weights) + 1000, 20 * sum(v.numel() for v in weights.values()) + 10**8

    def count(module: nn.Module, name: str, parameter: Tensor | None) -> None:
        nonlocal tensors, elements
        tensors, elements = tensors - 1, elements - (0 if parameter is None else parameter.numel())
        if min(tensors, elements) < 0:
            raise UserError("its header asks for a far larger network than there are weights for")

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def check(description: Any, trust: str | Sequence[str] = ()) -> None:
    """UserError for a class that is neither of this package nor trusted, before anything is imported.

    This includes the classes in arguments of a description.
    """
    _check(description, (trust,) if isinstance(trust, str) else tuple(trust))


def _check(description: Any, trust: tuple[str, ...]) -> None:
    if not is_description(description):
        raise UserError(f"the description of a network is damaged: {str(description)[:100]}")
    name = description["class"]
    if name not in _ours() and not any(name.startswith(f"{module}.") for module in trust):
        mine = name.partition(".")[0]
        raise UserError(
            f"names the class {name}, foreign code that would be run; if you trust it, pass "
            f'--trust {mine} on the command line or trust=["{mine}"] in Python'
        )
    large = [v for v in description["arguments"].values() if isinstance(v, int) and abs(v) > LARGEST]
    if large and not issubclass(_ours().get(name, nn.Module), NoiseModel):  # a noise model's are counts
        raise UserError(f"{name}: got {large[0]}, no size of a network")
    for value in _nested(list(description["arguments"].values())):
        _check(value, trust)


def _nested(value: Any) -> Iterator[dict[str, Any]]:
    """Yields the descriptions in an argument."""
    if isinstance(value, list):
        for each in value:
            yield from _nested(each)
    elif is_description(value):
        yield value


def is_description(value: Any) -> bool:
    """Whether a value has the form of a description by `describe`."""
    has_both = isinstance(value, dict) and value.keys() == {"class", "arguments"}
    return has_both and isinstance(value["class"], str) and isinstance(value["arguments"], dict)


@cache
def _ours() -> dict[str, type[nn.Module]]:
    exported = [
        getattr(package, name) for package in (samplers, students, losses) for name in package.__all__
    ]
    kinds = [kind for kind in exported if isinstance(kind, type) and issubclass(kind, nn.Module)]
    return {_name(kind): kind for kind in [*kinds, DirectDenoiser]}


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _build(description: dict[str, Any]) -> nn.Module:
    name, kind = description["class"], class_of(description)
    arguments = {k: _argument(v) for k, v in description["arguments"].items()}
    for file in files_of(kind) & arguments.keys():  # files of initial weights; the run has the trained ones
        if not isinstance(arguments[file], nn.Module):
            arguments[file] = None
    try:
        with checks_of():  # errors of the constructor itself, such as a missing library
            return kind(**arguments)
    except UserError:
        raise
    except Exception as error:  # the file may be of another version, or of anybody
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{name}: cannot be built ({reason}); use the version that trained it") from error


def class_of(description: dict[str, Any]) -> type[nn.Module]:
    """The class of a description. Call `check` before; otherwise any module that it names is imported."""
    name = description["class"]
    return _ours().get(name) or _imported(name)


def files_of(kind: type[nn.Module]) -> set[str]:
    """The constructor arguments that may name files or URLs, which a class lists as `files`.

    They are never taken from a description.
    """
    return set(getattr(kind, "files", ()))


def _imported(name: str) -> type[nn.Module]:
    path, _, attribute = name.rpartition(".")
    try:
        kind = getattr(importlib.import_module(path), attribute)
    except (Exception, SystemExit) as error:  # the module may raise any error
        raise UserError(f"{name}: cannot be imported ({error!r}); install or correct it") from error
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise UserError(f"{name}: not an nn.Module; is this file trustworthy?")
    return kind


def _argument(value: Any) -> Any:
    if isinstance(value, list):
        return [_argument(each) for each in value]
    return _build(value) if is_description(value) else value
