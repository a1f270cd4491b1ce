"""Samplers, students and losses of `distill train`, by their names: ours, or dotted paths of the user's."""

import inspect
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import jsonargparse
from torch import nn

import losses
import samplers
import students
from distill.errors import UserError
from distill.images.context import plane_count
from distill.images.sources import as_stack
from distill.options import Parser, values
from distill.runs import rebuild, tensors

ROLES = {
    "sampler": (samplers, samplers.PosteriorSampler, "StabilizedSampler"),
    "student": (students, nn.Module, "StabilizedUNet"),
    "loss": (losses, losses.Loss, "L2"),
}


def names_code(arguments: list[str]) -> bool:
    """Whether the arguments name the user's own modules: --trust, dotted paths, or a file of options."""
    words = [*arguments, ""]
    pairs = [(a, b) for a, b in pairwise(words)] + [tuple(a.split("=", 1)) for a in words if "=" in a]
    roles = tuple(f"--{role}" for role in ROLES)
    return any(
        flag in ("--trust", "--config") or (flag.startswith(roles) and "." in value) for flag, value in pairs
    )


def add_roles(parser: Parser, arguments: list[str]) -> None:
    """Adds --sampler, --student and --loss. Their options depend on the arguments."""
    for role, (package, base, default) in ROLES.items():
        names = ", ".join(_public_classes(package, base))
        parser.add_argument(
            f"--{role}",
            type=base,
            default=_default(role, arguments),
            metavar="NAME",
            help=f"{names}, or the dotted path of your own class"
            + (", or a sum such as '1*L1 + 0.1*LPIPS'" if role == "loss" else "")
            + f"; its options are --{role}.OPTION, listed by --{role}.help NAME (default: {default})",
        )


def _default(role: str, arguments: list[str]) -> dict[str, Any] | None:
    """Default of --sampler, --student or --loss; None if the user names another class.

    For HDN it is the light version, which a CPU trains in minutes. Other classes have no default here,
    because jsonargparse would carry its arguments over to arguments of the same name.
    """
    package, _, default = ROLES[role]
    name = (values(arguments, f"--{role}") or [""])[-1].removeprefix(f"{package.__name__}.")
    first_run = [run for flag in ("--init", "--from") for run in values(arguments, flag)]
    trust = values(arguments, "--trust")
    if first_run and not name and (described := _described(Path(first_run[-1]), role, trust)):
        return described
    if role == "sampler" and name == "HDN":
        return {"class_path": "samplers.HDN", "init_args": dict(samplers.LIGHT)}
    return {"class_path": f"{package.__name__}.{default}"} if name in ("", default) else None


def _described(run: Path, role: str, trust: list[str]) -> dict[str, Any] | None:
    """The network of a finished run, for a training that starts from its weights.

    Arguments that name files, such as a noise model, are omitted: the noise of the new images is estimated
    anew. Returns None if the run does not contain a description that can be used here.
    """
    file, key = {"sampler": ("sampler", "sampler"), "student": ("student", "backbone")}.get(role, ("", ""))
    path = run / f"{file}.safetensors"
    if not path.exists() or (network := tensors.load(path, {key: dict | None})[1][key]) is None:
        return None
    try:
        rebuild.check(network, trust)
        kind = rebuild.class_of(network)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    parameters, files = inspect.signature(kind, eval_str=True).parameters, rebuild.files_of(kind)
    options = {k: v for k, v in network["arguments"].items() if k not in files}
    for name, value in options.items():
        is_text = name in parameters and parameters[name].annotation in (str, str | None)
        if isinstance(value, list) and all(isinstance(each, int | float) for each in value):
            continue
        if isinstance(value, dict | list) or (isinstance(value, str) and not is_text):
            return None  # contains other networks; jsonargparse would import any class that a text names
    return {"class_path": network["class"], "init_args": options}


def set_channels(config: jsonargparse.Namespace, sampler: samplers.PosteriorSampler, outputs: int) -> bool:
    """Sets channels and scale of networks that have the default of 1, to fit the images, draws and loss.

    A student gets the sampler's dims. Returns True if that changed anything.
    """
    channels, changed = as_stack(config.images, config.axes).frames.shape[1], False
    in_channels = channels * plane_count(config.context) + count_conditions(config)
    out_channels = (sampler.out_channels or channels) * outputs
    scale = 1 if sampler.scale in (1, (1, 1), [1, 1]) else sampler.scale
    for role, needed in {
        "sampler": {"channels": channels} | ({"in_channels": in_channels} if in_channels != channels else {}),
        "student": {"in_channels": in_channels, "out_channels": out_channels, "scale": scale},
    }.items():
        arguments = config[role].get("init_args") or {}
        for name, value in needed.items():
            if arguments.get(name, value) in (None, 1) and value != 1:
                arguments[name], changed = value, True
    student = config.student.get("init_args") or {}
    if student.get("dims", sampler.dims) == 2 and sampler.dims != 2:
        student["dims"], changed = sampler.dims, True
    return changed


def count_conditions(config: jsonargparse.Namespace) -> int:
    """Number of maps that --conditions has for each image."""
    return 0 if config.conditions is None else as_stack(config.conditions).frames.shape[1]


def _public_classes(package: Any, base: type) -> list[str]:
    """Names of the classes for a role that a package exports."""
    exported = [(name, getattr(package, name)) for name in package.__all__]
    return [
        name
        for name, value in exported
        if isinstance(value, type) and issubclass(value, base) and value is not base
    ]


def full_names(arguments: list[str]) -> list[str]:
    """The arguments, where `--loss L1` becomes losses.L1, and `--loss '1*L1 + 0.1*LPIPS'` a weighted sum."""
    return [_full_name(arguments, i) for i in range(len(arguments))]


def _full_name(arguments: list[str], i: int) -> str:
    before, name = (arguments[i - 1] if i else ""), arguments[i]
    flag, equals, value = name.partition("=")
    if equals and flag.removeprefix("--") in ROLES:
        before, name = flag, value
    role = before.removeprefix("--").removesuffix(".help")
    if not before.startswith("--") or role not in ROLES or name.startswith(("-", "{")):
        return arguments[i]
    is_sum = role == "loss" and any(sign in name for sign in "+*")
    return (flag + "=" if equals else "") + (_weighted_sum(name) if is_sum else _class_path(role, name))


def _class_path(role: str, name: str) -> str:
    """Full name of a class. UserError for a name that is neither dotted nor a class of ours."""
    package, base, _ = ROLES[role]
    ours = _public_classes(package, base)
    if "." in name:
        return name
    if name not in ours:
        raise UserError(f"{role}: got '{name}', allowed are {', '.join(ours)} or a dotted path")
    return f"{package.__name__}.{name}"


def _weighted_sum(text: str) -> str:
    terms = [term.rpartition("*") for term in text.split("+")]
    try:
        weights = [float(weight or 1) for weight, _, _ in terms]
    except ValueError:
        raise UserError(f"loss: got '{text}', allowed is a sum such as '1*L1 + 0.1*LPIPS'") from None
    parts = [{"class_path": _class_path("loss", name.strip())} for _, _, name in terms]
    return json.dumps(
        {"class_path": "losses.WeightedSum", "init_args": {"losses": parts, "weights": weights}}
    )
