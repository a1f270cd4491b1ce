"""Describes a run in a few lines."""

from pathlib import Path
from typing import Any

from distill.errors import UserError
from distill.files import read_json_lines
from distill.runs import tensors
from distill.runs.checkpoint import SAMPLER_HEADER, STUDENT_HEADER, has_student
from distill.runs.rebuild import is_description

ROLES = ("student", "sampler")


def describe_run(path: Path) -> str:
    """Describes a run by the headers of its files alone; no network is built, so any run is safe."""
    check_links(path)
    sampler = "none in this folder"
    if (path / "sampler.safetensors").exists():
        sampler = _call(tensors.load(path / "sampler.safetensors", SAMPLER_HEADER)[1]["sampler"])
        if not has_student(path):
            return f"{path}: a sampler without a student\nsampler   {sampler}"
    weights, header = tensors.load(path / "student.safetensors", STUDENT_HEADER)
    if not weights.keys() >= {"mean", "std"}:
        raise UserError(f"{path}: its student has no mean and std; pass another run, or retrain it")
    mean, std = (weights[name].flatten().tolist() for name in ("mean", "std"))
    lines = [
        f"{path}: a finished run",
        f"sampler   {sampler}",
        f"student   {_call(header['backbone'])}, {header['parameters']:,} parameters",
        f"loss      {_call(header['loss'])}: its output is the {', '.join(map(str, header['outputs']))}",
        f"data      mean {_numbers(mean)}, std {_numbers(std)} counts",
    ]
    if "scale" in header:
        names = ", ".join(map(str, header["out_names"])) or "without names"
        lines.append(f"output    channels {header['out_channels']} ({names}), scale {header['scale']} (Y, X)")
    if "context" in header:
        lines.append(f"context   {header['context']}: an axis, and how many planes on either side")
    if "conditions" in header:
        lines.append(f"beside    the image it sees {header['conditions']} maps of conditions, such as a mask")
    metrics = path / "metrics.jsonl"
    if metrics.exists() and (rows := read_json_lines(metrics)):
        lines.append("last      " + ", ".join(f"{key} {_number(value)}" for key, value in rows[-1].items()))
    return "\n".join(lines)


def _numbers(values: list[float]) -> str:
    return ", ".join(map(_number, values))


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def is_finished(run: Path) -> bool:
    return any((run / f"{role}.safetensors").exists() for role in ROLES)


def check_links(run: Path) -> None:
    """UserError if a run contains a link to a file outside of it.

    Otherwise a report, which may be sent to others, could show another file of the user.
    """
    inside = run.resolve()
    for path in run.rglob("*"):
        if path.is_symlink() and not path.resolve().is_relative_to(inside):
            raise UserError(f"{path}: a link that leads out of the run; put the file itself there")


def _call(description: Any) -> str:
    if not is_description(description):
        return "an object that cannot be rebuilt by name"
    arguments = {k: _value(v) for k, v in description["arguments"].items() if v is not None}
    name = description["class"].rpartition(".")[2]
    return f"{name}({', '.join(f'{k}={v}' for k, v in arguments.items())})"


def _value(argument: Any) -> str:
    if isinstance(argument, list):
        return f"[{', '.join(_value(each) for each in argument)}]"
    return _call(argument) if is_description(argument) else str(argument)
