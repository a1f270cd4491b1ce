"""Denoises images in one call: trains on them, writes the result, evaluates it and writes a report."""

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
from distill.images.sources import Images, as_stack, check_apart, check_channels
from distill.images.stack import Stack
from distill.images.statistics import some_frames
from distill.images.targets import open_target
from distill.images.volumes import as_volumes
from distill.limits import check_limits
from distill.memory import as_bytes
from distill.prediction.blocks import Prediction, fingerprint
from distill.prediction.plan import fitting
from distill.prediction.predict import predict, workers_of
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

FRAMES, SIDE, DRAWS = 2, 512, (1, 10)  # of the evaluation, which takes seconds for images of any size
PATCH = 64  # px; largest side of training patches
LAYOUT = ("dtype", "chunks", "shards", "pyramid")  # options for the written file
WRITTEN = "denoised.json"  # file in the run that records a finished output


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
    """Trains on the noisy images, denoises them, and checks the result without ground truth.

    The networks are a StabilizedSampler and a StabilizedUNet with the loss L2 and with the initial weights in
    the package. To resume a stopped call, repeat it with the same arguments; a finished one changes nothing.

    Args:
        noisy: noisy images in raw counts: TIFF, OME-Zarr, .npy, or an array.
        out: image to write, with the axes and the pixel size of the input: .tif, .ome.tif or .ome.zarr.
        budget: training time, such as "90s", "10min" or "1h".
        run: folder of the run. Default: beside `out`, such as clean.run for clean.tif.
        trained: finished run, bioimage.io package of `export`, or "pretrained" (the weights in this package),
            which denoises the images without any training. Default: train.
        overwrite: replace `out` if it exists.
        device: "cpu", "cuda", "cuda:1" or "mps". Default: the best one of this machine.
        precision: "auto" (bf16 if the hardware has it), "bf16" or "fp32".
        axes: letters of the images' dimensions, of STCZYX. Default: those in the file.
        trust: your own modules that the files of `trained` may import classes from. Default: none.
        options: options of `predict`: memory, tile, halo, dtype, chunks, shards, pyramid, dask.

    Returns:
        The run. Its folder contains report.html. Pass it as `trained` to denoise further images.

    Raises:
        UserError: before the training starts, for arguments or images that cannot work.
    """
    check_limits(locals() | options)
    seconds(budget)  # UserError for an invalid time
    check_apart(noisy, out)
    stack, folder = as_stack(noisy, axes), Path(run or run_beside(out))
    machine: dict[str, Any] = {"device": device, "precision": precision}
    state = Unfinished(folder / WRITTEN, _work(stack, out, budget, trained, options))
    is_done = not overwrite and os.path.exists(out) and bool(state.load())
    if not is_done:
        _check_output(noisy, stack, out, overwrite, machine, options)
    if is_done:
        result = _loaded(folder, trust)
    elif trained is None:
        networks, patch = networks_for(stack), patch_size_for(stack.frames.shape)
        result = train(stack, *networks, L2(), folder, budget=budget, patch_size=patch,
                       memory=options.get("memory"), **machine)  # fmt: skip
    else:
        result = _copied(trained, stack, folder, trust)
    if not is_done:
        predict(result.denoiser, noisy, out, axes=axes, overwrite=overwrite, **machine, **options)
        state.save(True)
    seen = as_volumes(stack) if result.denoiser.dims == 3 else stack
    sample = Stack(some_frames(seen, FRAMES, SIDE), "TCZYX" if seen is not stack else "TCYX", stack.name)
    evaluate(result, sample, out=folder, draws=DRAWS, **machine)
    report(folder)
    return result


def networks_for(stack: Stack) -> tuple[StabilizedSampler, StabilizedUNet]:
    """The networks that `denoise` trains, with the same initial weights on every call."""
    torch.manual_seed(0)
    return StabilizedSampler(channels=_channels(stack)), _student(stack)


def patch_size_for(shape: Sequence[int]) -> int:
    """For frames (N, C, *S). One frame has to hold two patches side by side, one of them for validation."""
    largest = max(shape[-2:]) // 2 if shape[0] == 1 else PATCH
    return max(1, min(PATCH, largest, *shape[2:]))


def run_beside(out: str | os.PathLike[str]) -> Path:
    """Folder of the run for an output: clean.run for clean.tif, clean.ome.tif or clean.ome.zarr."""
    path = Path(out)
    stem = path.stem[:-4] if path.stem.lower().endswith(".ome") else path.stem
    return path.with_name(f"{stem}.run")


def _work(
    stack: Stack, out: str | Path, budget: str, trained: Any, options: dict[str, Any]
) -> dict[str, Any]:
    """JSON data that identifies a call, to recognise an existing output as its own."""
    source = Path(trained or "")
    student = source / "student.safetensors" if source.is_dir() else source
    changed = student.stat().st_mtime_ns if trained and student.exists() else 0
    networks = [str(trained and Path(trained).absolute()), changed, budget]
    result = sorted(each for each in options.items() if each[0] != "dask")  # which does not change the result
    return {"images": fingerprint(stack), "out": str(Path(out).absolute()), "networks": networks,
            "options": repr(result)}  # fmt: skip


def _check_output(
    noisy: Images, stack: Stack, out: str | Path, overwrite: bool, machine: dict[str, Any],
    options: dict[str, Any],
) -> None:  # fmt: skip
    """UserError for an output that `predict` would refuse after the training."""
    layout = {name: options[name] for name in LAYOUT if name in options}
    memory, tile, halo, dask = (options.get(name) for name in ("memory", "tile", "halo", "dask"))
    ceiling = None if memory is None else as_bytes(memory)
    check_tile(tile)
    target = open_target(out, stack, _channels(stack), **layout)
    if not target.path.parent.is_dir():
        raise UserError(f"{out}: its folder does not exist; create it or pass another path")
    target.check(overwrite)
    if tile is None or dask:
        denoiser = DirectDenoiser(_student(stack), L2(), _channels(stack))
        here: dict[str, Any] = machine | ({"device": "cpu"} if dask else {})  # the cluster has the device
        job = Prediction(denoiser, stack, **here)
        halo_of = (lambda: job.halo) if halo is None else (lambda: halo)
        with workers_of(dask, job, noisy, ceiling=ceiling, **machine) as workers:
            fitting(stack.frames.shape, target.grain, halo_of, job.cost(), workers.room)


def _student(stack: Stack) -> StabilizedUNet:
    return StabilizedUNet(_channels(stack), _channels(stack))


def _channels(stack: Stack) -> int:
    return stack.frames.shape[1]


def _loaded(run: Any, trust: str | Sequence[str]) -> Run:
    return Run(Path(run), load_sampler(run, trust=trust), load_denoiser(run, trust=trust))


def _copied(trained: Any, stack: Stack, folder: Path, trust: str | Sequence[str]) -> Run:
    """Copies a finished run to `folder`, for the evaluation and the report of these images."""
    if folder.exists() and Path(trained).exists() and folder.samefile(trained):
        return _loaded(trained, trust)
    if (folder / CHECKPOINT).exists():
        raise UserError(f"{folder}: contains a training; pass another --run for the report of these images")
    if trained == PRETRAINED and not Path(PRETRAINED).exists():
        sampler = pretrained_sampler(stack)
        copy = Run(folder, sampler, pretrained_denoiser(stack, sampler.light))
    else:
        is_alone = not isinstance(trained, Run) and is_package(Path(trained))
        copy = _from_package(trained, stack, folder, trust) if is_alone else _loaded(trained, trust)
        copy = replace(copy, path=folder)
        if copy.denoiser.context:
            raise UserError(
                f"{trained}: its networks need neighbouring planes ({copy.denoiser.context}), which denoise "
                "does not support; use distill predict and distill evaluate instead"
            )
        check_conditions(stack, str(trained), copy.denoiser.conditions)
        check_channels(stack, str(trained), copy.denoiser.channels)
    folder.mkdir(parents=True, exist_ok=True)
    save_run(copy)
    return copy


def _from_package(trained: Any, stack: Stack, folder: Path, trust: str | Sequence[str]) -> Run:
    """A run of a package, which has only a student. The sampler in this package draws for the report."""
    denoiser = load_denoiser(trained, trust=trust)
    if denoiser.reshapes:
        raise UserError(
            f"{trained}: its images have another shape than the input; use distill predict instead"
        )
    return Run(folder, pretrained_sampler(stack), denoiser)
