"""Tensors and a JSON header in one safetensors file, written whole or not at all, never pickle."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from distill.errors import UserError, out_of_memory
from distill.files import check_readable, whole_file


def save(path: Path, tensors: Mapping[str, Tensor], header: dict[str, Any]) -> None:
    """`path` is always either the old file or the new one."""
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    metadata = {"header": json.dumps(header), "sha256": digest(tensors)}
    with whole_file(path) as part:
        safetensors.torch.save_file(tensors, part, metadata)


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, header) of a file that `save` wrote; damage is an error."""
    check_readable(path, "pass the folder of a run, or train one")
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError) as error:
        if out_of_memory(error):
            raise MemoryError(f"{path}: {error}") from error
        raise UserError(f"{path}: damaged or not a safetensors file ({error})") from None
    if "header" not in metadata:
        raise UserError(f"{path}: a safetensors file, but not one that distill wrote")
    if metadata["sha256"] != digest(tensors):
        raise UserError(f"{path}: damaged (its checksum does not fit); restore or retrain it")
    return tensors, json.loads(metadata["header"])


def digest(tensors: Mapping[str, Tensor]) -> str:
    """sha256 of names and values."""
    sha256 = hashlib.sha256()
    for name in sorted(tensors):
        sha256.update(name.encode())
        sha256.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return sha256.hexdigest()
