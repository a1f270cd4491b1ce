"""What is in a run or an image, in a few lines."""

import json
from pathlib import Path
from typing import Any

from distill.files import read_json_lines
from distill.runs import checkpoint, tensors


def describe_run(path: Path) -> str:
    _, header = tensors.load(path / "student.safetensors")
    sampler = "none in this folder"
    if (path / "sampler.safetensors").exists():
        sampler = _call(tensors.load(path / "sampler.safetensors")[1]["sampler"])
    denoiser = checkpoint.load_denoiser(path)
    weights = sum(p.numel() for p in denoiser.backbone.parameters())
    lines = [
        f"{path}: a finished run",
        f"sampler   {sampler}",
        f"student   {_call(header['backbone'])}, {weights:,} parameters",
        f"loss      {_call(header['loss'])}: its output is the {', '.join(denoiser.loss.outputs)}",
        f"data      mean {denoiser.mean.flatten().tolist()}, std {denoiser.std.flatten().tolist()} counts",
    ]
    metrics = path / "metrics.jsonl"
    if metrics.exists() and (rows := read_json_lines(metrics)):
        lines.append(f"last      {json.dumps(rows[-1])}")
    return "\n".join(lines)


def _call(description: dict[str, Any] | None) -> str:
    if description is None:
        return "an object that cannot be rebuilt by name"
    given = {k: _value(v) for k, v in description["arguments"].items() if v is not None}
    name = description["class"].rpartition(".")[2]
    return f"{name}({', '.join(f'{k}={v}' for k, v in given.items())})"


def _value(argument: Any) -> str:
    if isinstance(argument, list):
        return f"[{', '.join(_value(each) for each in argument)}]"
    return _call(argument) if isinstance(argument, dict) else str(argument)
