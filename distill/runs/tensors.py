"""Tensors and a JSON header in one safetensors file, written completely or not at all, never as pickle."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from distill.errors import UserError, out_of_memory
from distill.files import check_readable, whole_file
from distill.runs.packages import is_package, student_in

DEEPEST = 50  # largest depth of nested lists and objects in a header; usually it is about 10
Fields = Mapping[str, type | UnionType]


def save(path: Path, tensors: Mapping[str, Tensor], header: dict[str, Any]) -> None:
    """Writes the file; at any moment `path` is either the old file or the new one."""
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    metadata = {"header": json.dumps(header), "sha256": digest(tensors, header)}
    with whole_file(path) as part:
        # Not by save_file, whose own temporary file would be left beside this one if the process is killed.
        Path(part).write_bytes(safetensors.torch.save(tensors, metadata))


def load(path: Path, fields: Fields | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, header) of a file of `save`, or of the student in a package.

    UserError if the file is damaged, or if its header lacks one of the fields.
    """
    check_readable(path, "pass the folder of a run, or train one")
    student = student_in(path) if is_package(path) else None
    try:
        metadata, tensors = _of_file(path) if student is None else _of_bytes(student)
    except Exception as error:  # safetensors raises errors of many kinds, such as for a type unknown to torch
        if out_of_memory(error):
            raise MemoryError(f"{path}: {error}") from error
        raise UserError(f"{path}: damaged or not a safetensors file ({error})") from None
    if not metadata.keys() >= {"header", "sha256"}:
        raise UserError(f"{path}: a safetensors file, but not one that distill wrote")
    header = _header(metadata["header"], path)
    if metadata["sha256"] != digest(tensors, header):
        raise UserError(
            f"{path}: damaged, or of an earlier version (its checksum does not fit); restore or retrain it"
        )
    for name, kind in (fields or {}).items():
        value = header.get(name, ...)
        if not isinstance(value, kind) or isinstance(value, bool):  # a bool is an int in Python
            raise UserError(f"{path}: its header lacks a valid '{name}'; pass another file, or retrain it")
    return tensors, header


def _of_file(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    with safetensors.safe_open(path, "pt") as file:
        return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _of_bytes(content: bytes) -> tuple[dict[str, str], dict[str, Tensor]]:
    tensors = safetensors.torch.load(content)  # which checks the header; of the metadata it gives nothing
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]).get("__metadata__", {}), tensors


def _header(text: str, path: Path) -> dict[str, Any]:
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: damaged (its header is no JSON: {str(error)[:100]})") from None
    level: list[Any] = [header]
    for _ in range(DEEPEST):  # deeper nesting could exceed Python's stack
        level = [each for value in level for each in _inside(value)]
    if level or not isinstance(header, dict):
        raise UserError(f"{path}: damaged (its header is no JSON object, or nested too deeply)")
    return header


def _inside(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []


def digest(tensors: Mapping[str, Tensor], header: dict[str, Any]) -> str:
    """SHA-256 of the header and of the names, types, shapes and values of the tensors."""
    sha256 = hashlib.sha256(json.dumps(header).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        sha256.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        sha256.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha256.hexdigest()
