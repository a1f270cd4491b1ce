"""From noisy images to a denoised file and a report, in one call: train, predict, evaluate, report."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from distill.denoiser import DirectDenoiser
from distill.errors import UserError
from distill.evaluation.evaluate import evaluate
from distill.files import Unfinished
from distill.hardware import Precision
from distill.images.conditions import check_conditions
from distill.images.sources import Images, as_stack, check_channels
from distill.images.stack import Stack
from distill.images.statistics import some_frames
from distill.images.targets import open_target
from distill.limits import check_limits
from distill.memory import as_bytes, free_on
from distill.prediction.blocks import Prediction, fingerprint
from distill.prediction.plan import fitting
from distill.prediction.predict import predict
from distill.prediction.pretrained import PRETRAINED, pretrained_denoiser, pretrained_sampler
from distill.prediction.tiles import check_tile
from distill.reporting.page import report
from distill.runs.checkpoint import load_denoiser, load_sampler, save_run
from distill.runs.packages import is_package
from distill.runs.run import Run
from distill.training.budget import seconds
from distill.training.engine import train
from distill.training.resume import CHECKPOINT
from losses import L2
from samplers import StabilizedSampler
from students import StabilizedUNet

FRAMES, SIDE, DRAWS = 2, 512, (1, 10)  # of the evaluation: seconds, however large the images are
PATCH = 64  # px, or the smaller side of smaller images
LAYOUT = ("dtype", "chunks", "shards", "pyramid")  # what decides how the output is written
WRITTEN = "denoised.json"  # in the run: which output is whole already


def denoise(
    noisy: Images,
    out: str | Path,
    *,
    budget: str = "5min",
    run: str | os.PathLike[str] | None = None,
    trained: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    device: str | None = None,
    precision: Precision = "auto",
    axes: str | None = None,
    trust: str | Sequence[str] = (),
    **options: Any,
) -> Run:
    """Trains on the noisy images, writes them denoised, and judges the result without ground truth.

    The networks are a StabilizedSampler and a StabilizedUNet under L2, which start from the weights in the
    package. To resume a stopped call, call it again with the same arguments; a finished one changes nothing.
    The run that is returned has report.html in its folder, and denoises the next images as `trained`.

    Args:
        noisy: noisy images in raw counts: TIFF, OME-Zarr, .npy, or an array.
        out: image to write, with the axes and the pixel size of the input: .tif, .ome.tif or .ome.zarr.
        budget: time for training, such as "90s", "10min" or "1h".
        run: folder of the run. Default: beside `out`, clean.run for clean.tif.
        trained: finished run, or a package that `export` wrote for bioimage.io, that denoises the images
            without any training; or "pretrained", the shipped weights. Default: train.
        overwrite: replace `out` if it exists.
        device: "cpu", "cuda", "cuda:1" or "mps". Default: the best one of this machine.
        precision: "auto" (bf16 where the hardware has it), "bf16" or "fp32".
        axes: letters of the images' dimensions, of STCZYX. Default: what the file says.
        trust: your modules whose classes the files of `trained` may name, and so import. Default: none.
        options: of `predict`: memory, tile, halo, dtype, chunks, shards, pyramid.

    Raises:
        UserError: for what cannot work, before the training starts.
    """
    check_limits(locals() | options)
    seconds(budget)  # its spelling
    stack, folder = as_stack(noisy, axes), Path(run or run_beside(out))
    machine: dict[str, Any] = {"device": device, "precision": precision}
    state = Unfinished(folder / WRITTEN, _work(stack, out, budget, trained, options))
    whole = not overwrite and os.path.exists(out) and bool(state.load())
    if not whole:
        _check_output(stack, out, overwrite, machine, options)
    if whole:
        finished = _loaded(folder, trust)
    elif trained is None:
        networks, patch = networks_for(stack), min(PATCH, *stack.frames.shape[2:])
        finished = train(stack, *networks, L2(), folder, budget=budget, patch_size=patch,
                         memory=options.get("memory"), **machine)  # fmt: skip
    else:
        finished = _taken_over(trained, stack, folder, trust)
    if not whole:
        predict(finished.denoiser, stack, out, overwrite=overwrite, **machine, **options)
        state.save(True)
    sample = Stack(some_frames(stack, FRAMES, SIDE), "TCYX", stack.name)
    evaluate(finished, sample, out=folder, draws=DRAWS, **machine)
    report(folder)
    return finished


def networks_for(stack: Stack) -> tuple[StabilizedSampler, StabilizedUNet]:
    """What `denoise` trains; the same each time."""
    torch.manual_seed(0)
    return StabilizedSampler(channels=_channels(stack)), _student(stack)


def run_beside(out: str | os.PathLike[str]) -> Path:
    """clean.run for clean.tif, clean.ome.tif or clean.ome.zarr."""
    path = Path(out)
    stem = path.stem[:-4] if path.stem.lower().endswith(".ome") else path.stem
    return path.with_name(f"{stem}.run")


def _work(
    stack: Stack, out: str | Path, budget: str, trained: Any, options: dict[str, Any]
) -> dict[str, Any]:
    """What tells a call from others, for an output that is there to be recognised as its own."""
    source = Path(trained or "")
    student = source / "student.safetensors" if source.is_dir() else source
    changed = student.stat().st_mtime_ns if trained and student.exists() else 0
    networks = [str(trained and Path(trained).absolute()), changed, budget]
    return {"images": fingerprint(stack), "out": str(Path(out).absolute()), "networks": networks,
            "options": repr(sorted(options.items()))}  # fmt: skip


def _check_output(
    stack: Stack, out: str | Path, overwrite: bool, machine: dict[str, Any], options: dict[str, Any]
) -> None:
    """Everything that `predict` would refuse after the training, on a student of the same size."""
    layout = {name: options[name] for name in LAYOUT if name in options}
    memory, tile, halo = (options.get(name) for name in ("memory", "tile", "halo"))
    ceiling = None if memory is None else as_bytes(memory)
    check_tile(tile)
    target = open_target(out, stack, _channels(stack), **layout)
    if not target.path.parent.is_dir():
        raise UserError(f"{out}: its folder does not exist; create it or pass another path")
    target.check(overwrite)
    if tile is None:
        job = Prediction(DirectDenoiser(_student(stack), L2(), _channels(stack)), stack, **machine)
        room = ceiling or free_on(job.hardware.device) / 2
        wanted = (lambda: job.halo) if halo is None else (lambda: halo)
        fitting(stack.frames.shape, target.grain, wanted, job.cost(), room)


def _student(stack: Stack) -> StabilizedUNet:
    return StabilizedUNet(_channels(stack), _channels(stack))


def _channels(stack: Stack) -> int:
    return stack.frames.shape[1]


def _loaded(run: Any, trust: str | Sequence[str]) -> Run:
    return Run(Path(run), load_sampler(run, trust=trust), load_denoiser(run, trust=trust))


def _taken_over(trained: Any, stack: Stack, folder: Path, trust: str | Sequence[str]) -> Run:
    """A copy of a finished run for these images, with which their evaluation and report may lie."""
    if folder.exists() and Path(trained).exists() and folder.samefile(trained):
        return _loaded(trained, trust)
    if (folder / CHECKPOINT).exists():
        raise UserError(f"{folder}: holds a training; pass another --run for the report of these images")
    if trained == PRETRAINED and not Path(PRETRAINED).exists():
        copy = Run(folder, pretrained_sampler(stack), pretrained_denoiser(stack))
    else:
        is_alone = not isinstance(trained, Run) and is_package(Path(trained))
        copy = _from_package(trained, stack, folder, trust) if is_alone else _loaded(trained, trust)
        copy = replace(copy, path=folder)
        if copy.denoiser.context:
            raise UserError(
                f"{trained}: its networks see neighbouring planes ({copy.denoiser.context}), which denoise "
                "does not give them; run distill predict and distill evaluate with it"
            )
        check_conditions(stack, str(trained), copy.denoiser.conditions)
        check_channels(stack, str(trained), copy.denoiser.channels)
    folder.mkdir(parents=True, exist_ok=True)
    save_run(copy)
    return copy


def _from_package(trained: Any, stack: Stack, folder: Path, trust: str | Sequence[str]) -> Run:
    """It holds a student alone: what the report says of draws and noise is by the shipped sampler."""
    denoiser = load_denoiser(trained, trust=trust)
    if denoiser.reshapes:
        raise UserError(
            f"{trained}: gives images of another shape than the input; run distill predict with it"
        )
    return Run(folder, pretrained_sampler(stack), denoiser)
