"""Runs on disk: safetensors with JSON in the header, written whole or not at all, never pickle."""

import hashlib
import importlib
import inspect
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from distill.denoiser import DirectDenoiser
from distill.errors import UserError
from samplers import PosteriorSampler


def save(path: Path, tensors: Mapping[str, Tensor], header: dict[str, Any]) -> None:
    """Writes to a temporary name, syncs and renames: `path` is always either the old or the new."""
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    metadata = {"header": json.dumps(header), "sha256": _digest(tensors)}
    temporary = path.with_name(path.name + ".tmp")
    safetensors.torch.save_file(tensors, temporary, metadata)
    with open(temporary, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, header) of a file that `save` wrote; damage is an error."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; pass the folder of a run, or train one") from None
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{path}: damaged or not a safetensors file ({error})") from None
    if "header" not in metadata:
        raise UserError(f"{path}: a safetensors file, but not one that distill wrote")
    if metadata["sha256"] != _digest(tensors):
        raise UserError(f"{path}: damaged (its checksum does not fit); restore or retrain it")
    return tensors, json.loads(metadata["header"])


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


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
        return kind(**arguments)
    except ValueError as error:  # a constructor's own check, as for a library that is missing
        raise UserError(str(error)) from error
    except TypeError as error:  # written by a version whose constructor took other arguments
        raise UserError(f"{description['class']}: {error}; use the version that trained it") from error


def _rebuild_argument(value: Any) -> Any:
    if isinstance(value, list):
        return [_rebuild_argument(each) for each in value]
    is_module = isinstance(value, dict) and value.keys() == {"class", "arguments"}
    return rebuild(value) if is_module else value


def save_sampler(path: Path, sampler: PosteriorSampler) -> None:
    save(path, sampler.state_dict(), {"sampler": describe(sampler)})


def save_denoiser(path: Path, denoiser: DirectDenoiser) -> None:
    header = {
        "backbone": describe(denoiser.backbone),
        "loss": describe(denoiser.loss),
        "channels": len(denoiser.mean),
    }
    save(path, denoiser.state_dict(), header)


def load_sampler(run: str | Path, sampler: PosteriorSampler | None = None) -> PosteriorSampler:
    """The trained sampler of a run (its folder or file), in eval mode.

    sampler: an object of the same architecture, for one that the file cannot describe.
    """
    path = _file(run, "sampler.safetensors")
    tensors, header = load(path)
    sampler = sampler or _described(path, header, "sampler")
    sampler.load_state_dict(tensors)
    return sampler.eval().to(memory_format=torch.channels_last)


def load_denoiser(run: str | Path, backbone: nn.Module | None = None) -> DirectDenoiser:
    """The trained student of a run (its folder or file), in eval mode.

    backbone: an object of the same architecture, for one that the file cannot describe.
    """
    path = _file(run, "student.safetensors")
    tensors, header = load(path)
    backbone = backbone or _described(path, header, "backbone")
    denoiser = DirectDenoiser(backbone, _described(path, header, "loss"), header["channels"])
    denoiser.load_state_dict(tensors)
    return denoiser.eval().to(memory_format=torch.channels_last)


def _file(run: str | Path, name: str) -> Path:
    return Path(run) / name if Path(run).is_dir() else Path(run)


def _described(path: Path, header: dict[str, Any], role: str) -> nn.Module:
    if header.get(role) is None:
        raise UserError(f"{path}: holds no {role} that can be rebuilt by name; in Python, pass {role}=...")
    return rebuild(header[role])
