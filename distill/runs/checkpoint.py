"""Runs on disk as safetensors with JSON in the header, written completely or not at all, never as pickle."""

import json
import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from distill.denoiser import DirectDenoiser
from distill.errors import UserError, checks_of
from distill.images.context import plane_count
from distill.runs.packages import is_package
from distill.runs.rebuild import LARGEST, describe, rebuild
from distill.runs.run import Run
from distill.runs.tensors import Fields, digest, load, save
from losses import Loss
from samplers import PosteriorSampler
from students.dimensions import channels_last

AnyRun = str | os.PathLike[str] | DirectDenoiser | PosteriorSampler  # a Run, its folder, or a network of it
log = logging.getLogger(__name__)
CALIBRATION = "calibration.json"
Trust = str | Sequence[str]
SAMPLER_HEADER: Fields = {"sampler": dict | None}
CHECKPOINT_HEADER: Fields = {
    "settings": dict, "rng": dict, "step": int, "seconds": float | int, "best": float | int, "stale": int
}  # fmt: skip
STUDENT_HEADER: Fields = {
    "backbone": dict | None, "loss": dict | None, "channels": int, "outputs": list, "parameters": int
}  # fmt: skip
Kind = TypeVar("Kind", bound=nn.Module)


def save_run(run: Run) -> None:
    """Writes both networks to the folder of the run."""
    save_sampler(run.path / "sampler.safetensors", run.sampler)
    save_denoiser(run.path / "student.safetensors", run.denoiser)


def save_sampler(path: Path, sampler: PosteriorSampler) -> None:
    save(path, sampler.state_dict(), {"sampler": describe(sampler)} | _seen(sampler))


def save_denoiser(path: Path, denoiser: DirectDenoiser) -> None:
    header: dict[str, Any] = {
        "backbone": describe(denoiser.backbone),
        "loss": describe(denoiser.loss),
        "channels": len(denoiser.mean),
        # For `distill info`, because building a network may need the code of others.
        "outputs": list(denoiser.loss.outputs),
        "parameters": sum(p.numel() for p in denoiser.backbone.parameters()),
    }
    if denoiser.reshapes or denoiser.out_names:
        header |= {key: getattr(denoiser, key) for key in _OUTPUT}
    save(path, denoiser.state_dict(), header | _seen(denoiser))


def _seen(network: PosteriorSampler | DirectDenoiser) -> dict[str, Any]:
    """What it sees beside the plane itself, if anything."""
    seen = {key: getattr(network, key) for key in ("context", "conditions")}
    return {key: value for key, value in seen.items() if value}


_OUTPUT = ("out_channels", "scale", "out_names")  # in a header if outputs differ from the images


def load_sampler(
    run: AnyRun, sampler: PosteriorSampler | None = None, *, trust: Trust = ()
) -> PosteriorSampler:
    """Loads the trained sampler of a run, in eval mode.

    Args:
        run: folder of a run, its sampler file, or a Run. A sampler is returned as it is.
        sampler: sampler of the same architecture, for one that the file cannot describe.
        trust: your modules whose classes the file may name; they are imported. Default: none.
    """
    if isinstance(run, Run | PosteriorSampler):
        return (run.sampler if isinstance(run, Run) else run).eval()
    path = _file(run, "sampler.safetensors")
    if is_package(path):
        raise UserError(
            f"{path}: a package, which holds a student and no sampler; pass the folder of its run"
        )
    tensors, header = load(path, SAMPLER_HEADER)
    sampler = sampler or _described(path, header, "sampler", PosteriorSampler, trust, tensors)
    load_state(path, sampler, tensors)
    sampler.context, sampler.conditions = _context(path, header), _conditions(path, header)
    return channels_last(sampler.eval())


def load_denoiser(run: AnyRun, backbone: nn.Module | None = None, *, trust: Trust = ()) -> DirectDenoiser:
    """Loads the trained student of a run, or of a bioimage.io package written by `export`, in eval mode.

    Args:
        run: folder of a run, its student file, a package, or a Run. A denoiser is returned as it is.
        backbone: network of the same architecture, for one that the file cannot describe.
        trust: your modules whose classes the file may name; they are imported. Default: none.
    """
    if isinstance(run, Run | DirectDenoiser):
        return (run.denoiser if isinstance(run, Run) else run).eval()
    path = _file(run, "student.safetensors")
    if not has_student(run):
        raise UserError(
            f"{run}: contains a sampler and no student; pass --draws 100 to average draws, or train one: "
            f"distill train IMAGES --from {run} --steps 0 --refine_steps 2000 --out ANOTHER"
        )
    tensors, header = load(path, STUDENT_HEADER)
    backbone = backbone or _described(path, header, "backbone", nn.Module, trust, tensors)
    loss = _described(path, header, "loss", Loss, trust, tensors)
    channels = header["channels"]
    if "mean" not in tensors or tensors["mean"].shape[:1] != (channels,):
        raise UserError(f"{path}: contains no mean of {channels} channels; pass another file, or retrain it")
    denoiser = _denoiser(path, backbone, loss, header)
    load_state(path, denoiser, tensors)
    if not is_package(path):  # whose student has its calibration in it
        denoiser.spread.mul_(_calibrated(path.with_name(CALIBRATION), digest(tensors, header)))
    return channels_last(denoiser.eval())


def _denoiser(path: Path, backbone: nn.Module, loss: Loss, header: dict[str, Any]) -> DirectDenoiser:
    output = {key: header[key] for key in _OUTPUT if key in header}
    channels, names = output.get("out_channels", 1), output.get("out_names", [])
    sound = isinstance(channels, int) and 0 < channels < LARGEST
    if not sound or not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path}: its header describes no images ({output}); pass another, or retrain it")
    context, conditions, seen = _context(path, header), _conditions(path, header), header["channels"]
    if not conditions < seen or (seen - conditions) % plane_count(context):
        raise UserError(
            f"{path}: its {seen} channels are not those of a context {context} and {conditions} conditions; "
            "retrain it"
        )
    with checks_of(str(path)):
        return DirectDenoiser(backbone, loss, seen, **output, context=context, conditions=conditions)


def _context(path: Path, header: dict[str, Any]) -> str | None:
    """The context of a network, such as "T2". UserError if the header's value is not valid."""
    context = header.get("context")
    if not isinstance(context, str | None):
        raise UserError(f"{path}: its header has an invalid context ({context}); pass another, or retrain it")
    plane_count(context)
    return context


def _conditions(path: Path, header: dict[str, Any]) -> int:
    """How many maps a network sees beside the image. Errors: anything that is no such number."""
    conditions = header.get("conditions", 0)
    if type(conditions) is not int or not 0 <= conditions < LARGEST:
        raise UserError(f"{path}: its header tells no conditions ({conditions}); pass another, or retrain it")
    return conditions


def has_student(run: AnyRun) -> bool:
    """Whether a run should have a student; an imported HDN makes a run of a sampler alone."""
    if isinstance(run, nn.Module | Run) or not Path(run).is_dir():
        return True
    return not (Path(run) / "sampler.safetensors").exists() or (Path(run) / "student.safetensors").exists()


def _calibrated(path: Path, student: str) -> float:
    """The factor of `calibrate` for the student with this digest; 1 for any other student."""
    if not path.exists():
        return 1.0
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        factor = float(stored["factor"]) if stored.get("student") == student else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: damaged ({error}); delete it, and calibrate again") from None
    if factor is None:
        log.warning("%s: belongs to another student than the one beside it; calibrate again", path)
        return 1.0
    if not 0 < factor < math.inf:
        raise UserError(f"{path}: got factor {factor}, must be above 0 and finite; calibrate again")
    return factor


def load_state(path: str | os.PathLike[str], module: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        first = str(error).splitlines()[1:2] or [str(error)]
        raise UserError(
            f"{path}: its weights are of another architecture than its {type(module).__name__} "
            f"({first[0].strip()}); pass the network that they belong to, or train it again"
        ) from None


def load_weights(run: str | os.PathLike[str], sampler: PosteriorSampler, student: nn.Module) -> None:
    """Copies the weights of a finished run into networks of the same architecture, for further training.

    Statistics of the images and the noise model are not copied, because they belong to the images of the run.
    If the run has no student, the student keeps its weights.
    """
    networks: dict[str, tuple[nn.Module, str]] = {"sampler.safetensors": (sampler, "")}
    if has_student(run):
        networks["student.safetensors"] = (student, "backbone.")
    for name, (network, prefix) in networks.items():
        path = _file(run, name)
        stored = {k.removeprefix(prefix): v for k, v in load(path)[0].items() if k.startswith(prefix)}
        own = network.state_dict()
        weights = {
            k: v for k, v in stored.items() if k not in _OF_THE_IMAGES and not k.startswith("noise_model.")
        }
        unfit = [k for k in weights if k not in own or own[k].shape != weights[k].shape]
        if unfit or [k for k, _ in network.named_parameters() if k not in stored]:
            raise UserError(
                f"{path}: has another {type(network).__name__} than the one to train ({len(unfit)} tensors "
                "do not fit); pass networks with the arguments that `distill info` shows"
            )
        network.load_state_dict(weights, strict=False)


def settings(header: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `train`, from the header of a checkpoint."""
    values = header["settings"]
    if wrong := [name for name in _NUMBERS if not isinstance(values.get(name), int)]:
        raise UserError(f"a checkpoint's settings lack {', '.join(wrong)}; train anew, to another --out")
    return values


_NUMBERS = ("steps", "refine_steps", "batch_size", "micro_batch", "patch_size", "draws")
_OF_THE_IMAGES = ("mean", "std", "gain", "offset", "level", "correlation")


def name_of(run: str | os.PathLike[str] | nn.Module) -> str:
    """The name of a run in messages."""
    return type(run).__name__ if isinstance(run, nn.Module) else str(run)


def _file(run: AnyRun, name: str) -> Path:
    if isinstance(run, nn.Module):
        raise UserError(
            f"{name_of(run)}: contains no {Path(name).stem}; pass the result of train, or its folder"
        )
    return Path(run) / name if Path(run).is_dir() else Path(run)


def _described(
    path: Path, header: dict[str, Any], role: str, kind: type[Kind], trust: Trust, tensors: dict[str, Tensor]
) -> Kind:
    if header[role] is None:
        raise UserError(f"{path}: contains no {role} that can be rebuilt by name; in Python, pass {role}=...")
    try:
        module = rebuild(header[role], trust, tensors)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    if not isinstance(module, kind):
        raise UserError(f"{path}: its {role} is a {type(module).__name__}, must be a {kind.__name__}")
    return module
