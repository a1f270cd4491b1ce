"""Denoises new images with a trained run: by one pass of the student, or many draws of the sampler."""

import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from distill.denoiser import DirectDenoiser
from distill.errors import UserError
from distill.extras import extra
from distill.hardware import Precision
from distill.images.enlarged import like_output
from distill.images.sources import Images, check_apart
from distill.images.stack import Stack
from distill.images.statistics import SCAN_BYTES, check_finite
from distill.images.targets import Target, Writing, open_target, writing
from distill.images.volumes import in_planes
from distill.limits import check_limits
from distill.memory import as_bytes, check_memory
from distill.prediction.blocks import STATISTICS, NotFinite, Prediction, Statistic
from distill.prediction.plan import ALIGNMENT, Block, Plan, fitting
from distill.prediction.stream import Workers, this_process
from distill.prediction.tiles import check_tile
from samplers import PosteriorSampler

log = logging.getLogger(__name__)
SMALL = 0.25  # share of the memory; smaller results are returned as an array
PARTS = 20  # approximate number of progress reports of `predict_maps`


def predict(
    run: str | os.PathLike[str] | DirectDenoiser | PosteriorSampler,
    noisy: Images,
    out: str | Path | None = None,
    *,
    draws: int = 0,
    statistic: Statistic = "mean",
    seed: int = 0,
    memory: str | float | None = None,
    tile: int | None = None,
    halo: int | None = None,
    dtype: Literal["float32", "input"] = "float32",
    chunks: int | None = None,
    shards: int | None = None,
    pyramid: bool = False,
    overwrite: bool = False,
    device: str | None = None,
    precision: Precision = "auto",
    axes: str | None = None,
    trust: str | Sequence[str] = (),
    dask: str | None = None,
    conditions: Images | None = None,
) -> Any:
    """Denoises every frame in raw counts and keeps the axes of the images -> the denoised image.

    Images of any size are read, denoised and written block by block. A call that was stopped resumes if it is
    repeated with the same arguments, and ends with the same bytes. If the student has several output images,
    such as an uncertainty, the others are written beside `out`, for example as denoised_std.tif.

    Args:
        run: a run or its folder, a DirectDenoiser, a bioimage.io package of `export`, or "pretrained", the
            networks in this package, for a first result before any training; with draws, also a sampler.
        noisy: noisy images in raw counts: a path, an array or a Stack.
        out: image to write, with the pixel size, axes, channel names and time step of the input: .tif,
            .ome.tif, or .ome.zarr (v0.5; v0.4 for an input of that version). Default: none.
        draws: number of draws of the sampler; 0 for one pass of the student.
        statistic: statistic of the draws in each pixel: "mean", "median" or "std".
        seed: seed of the draws, from which each tile of each frame gets its own.
        memory: most additional memory of the process, such as 2GB, which limits the tiles. Default: half of
            the free memory of the machine and the device.
        tile: side in pixels of square tiles, for images too large to compute whole. Default: the largest that
            fits.
        halo: width in pixels of the surroundings of each tile that the networks see. Default: the student's
            receptive field, so that tiles do not change the result; 64 for draws, since most samplers use all
            of an image.
        dtype: pixel type of the result: "float32", or "input", rounded and clipped to the input's type.
        chunks: side in pixels of the chunks of a .zarr. Default: that of the input, or 512.
        shards: side in pixels of the shards of a .zarr, which are files of many chunks. Default: no shards.
        pyramid: add smaller versions of the image to a .zarr, for viewers.
        overwrite: replace `out` if it exists.
        device: "cpu", "cuda", "cuda:1", "mps". Default: the best one of this machine.
        precision: "auto" (bf16 if the hardware has it), "bf16" or "fp32".
        axes: letters of the images' dimensions, of STCZYX. Default: the axes in the file.
        trust: your own modules that the run's files may import classes from. Default: none.
        dask: cluster for the computation: local:4 for four workers on this machine, which share `memory`, or
            the address or the .json file of a running scheduler, each of whose workers may use `memory`. The
            workers open `noisy` by its path. Default: this process.
        conditions: conditions of the images, such as a mask, as in the training of the run: one frame for
            all images, or one for each. Default: none.

    Returns:
        The central output image as an array. With `out`, a large image is returned unread, as opened from
        the written file.

    Raises:
        UserError: if the images do not fit the run, `out` exists or cannot be written, memory is too small,
            or the result is not finite.
    """
    settings: dict[str, Any] = {"draws": draws, "statistic": statistic, "seed": seed, "device": device,
              "precision": precision, "axes": axes, "trust": trust, "conditions": conditions}  # fmt: skip
    options = {"chunks": chunks, "shards": shards, "pyramid": pyramid}
    check_limits(settings | options | {"out": out, "tile": tile, "halo": halo, "dask": dask})
    _check_arguments(draws, statistic, tile)
    if out is not None:
        check_apart(noisy, out)
    ceiling = None if memory is None else as_bytes(memory)
    # With a cluster, this process may lack the device of the workers.
    settings["device"] = "cpu" if dask else device
    job = Prediction(run, noisy, **settings)
    targets = [] if out is None else _targets(out, job, dtype, options)
    with workers_of(dask, job, noisy, device, precision, ceiling) as workers:
        stack, room = job.stack, workers.room
        if math.prod(stack.frames.shape) * stack.pixels.dtype.itemsize <= min(SCAN_BYTES, room):
            check_finite(stack)  # larger ones are checked block by block
        if out is None:
            return _in_memory(job, lambda: _plan(job, (1, 1, 1), room, tile, halo), workers)
        grain = _grain(targets[0].grain, job.scale)
        grain = (1, *grain[1:]) if job.depth else grain  # a volume has all planes of its chunks
        options |= {"tile": tile, "halo": halo, "memory": ceiling, "dtype": dtype}
        with writing(targets, job.identity(workers.device) | options, overwrite) as target:
            plan = Plan(**target.plan) if target.plan else _plan(job, grain, room, tile, halo)
            _write(job, plan, _blocks(plan, stack, grain[0]), workers, target)
    return _result(targets[0], room)


def workers_of(
    dask: str | None, job: Prediction, noisy: Images, device: str | None, precision: Precision,
    ceiling: float | None,
) -> AbstractContextManager[Workers]:  # fmt: skip
    """This process, or the cluster `dask`; see `predict`. ceiling: most memory, in bytes."""
    if dask is None:
        return nullcontext(this_process(job, ceiling))
    extra("distributed", "dask", f"dask {dask}")
    from distill.prediction.cluster import cluster

    return cluster(dask, job, noisy, device, precision, ceiling)


def _write(job: Prediction, plan: Plan, blocks: list[Block], workers: Workers, target: Writing) -> None:
    """Computes and writes the blocks that are not written yet."""
    numbers = {blocks[i]: i for i in target.begin(asdict(plan), len(blocks))}

    def write(block: Block, images: list[np.ndarray]) -> None:
        top, left = block.rows[0] * job.scale[0], block.columns[0] * job.scale[1]
        for first, planes in in_planes(job.stack, block.first, images):
            target.write(first, top, left, planes)

    try:
        for block in _shown(workers.compute(plan, list(numbers), write), blocks, list(numbers)):
            target.mark(numbers[block])
    except NotFinite:
        target.discard()
        raise


def _shown(finished: Iterator[Block], blocks: list[Block], remaining: list[Block]) -> Iterator[Block]:
    """Yields the finished blocks and shows a progress bar in pixels of all blocks."""
    total, rest = (sum(each.pixels for each in group) for group in (blocks, remaining))
    with tqdm(desc="predict", total=total, initial=total - rest, unit="px", unit_scale=True) as bar:
        for block in finished:
            yield block
            bar.update(block.pixels)


def _targets(out: str | Path, job: Prediction, dtype: str, options: dict[str, Any]) -> list[Target]:
    like = like_output(job.stack, job.scale, job.network.out_names)
    kinds = ["float32" if name == "std" else dtype for name in job.names]  # integers would be too coarse
    return [
        open_target(file, like, job.channels, kind, **options)
        for file, kind in zip(map_files(out, job.names), kinds, strict=True)
    ]


def _grain(grain: tuple[int, int, int], scale: tuple[int, int]) -> tuple[int, int, int]:
    """Numbers of frames, rows and columns of the input whose results have to be written together."""
    rows, columns = (math.lcm(n, by) // by for n, by in zip(grain[1:], scale, strict=True))
    return grain[0], rows, columns


def _plan(
    job: Prediction, grain: tuple[int, int, int], ceiling: float, tile: int | None, halo: int | None
) -> Plan:
    shape, halo_of = job.stack.frames.shape, lambda: job.halo if halo is None else halo
    if tile is None:
        plan = fitting(shape, grain, halo_of, job.cost(), ceiling)
        plan = plan if halo is None else replace(plan, halo=halo)
    else:
        sides = [max(ALIGNMENT, tile // ALIGNMENT * ALIGNMENT)] * 2
        sides = [-(-side // each) * each for side, each in zip(sides, grain[1:], strict=True)]
        plan = Plan(*sides, frames=grain[0], batch=1, halo=halo_of())
    if (plan.height < shape[-2] or plan.width < shape[-1]) and not job.has_limited_field:
        log.warning(
            "in tiles of %d x %d px with a halo of %d px: the receptive field of this network is larger, so "
            "the result differs slightly from that of the whole image", plan.height, plan.width, plan.halo
        )  # fmt: skip
    return plan


def _blocks(plan: Plan, stack: Stack, depth: int) -> list[Block]:
    """All blocks. depth: of the target's chunks; if more than 1, blocks end with the last axis of frames."""
    sizes = zip(stack.axes[::-1], stack.pixels.shape[::-1], strict=True)
    last = next((n for a, n in sizes if a in "STZ"), 1)
    return plan.blocks(stack.frames.shape, last if depth > 1 else len(stack.frames))


def _in_memory(job: Prediction, plan_of: Callable[[], Plan], workers: Workers) -> np.ndarray:
    return _maps(job, plan_of, workers, 1, lambda share: None)[0]


def predict_maps(
    run: str | os.PathLike[str] | DirectDenoiser, noisy: Images, on_block: Callable[[float], object]
) -> dict[str, np.ndarray]:
    """All output images of a student by name, the central one first, each like the result of `predict`.

    on_block: function that is called about PARTS times with the finished share of the work. An exception that
    it raises stops the prediction.
    """
    job = Prediction(run, noisy)
    workers, most = this_process(job, None), max(1, len(job.stack.frames) // PARTS)

    def plan_of() -> Plan:
        plan = _plan(job, (1, 1, 1), workers.room, None, None)
        return replace(plan, frames=min(most, plan.frames), batch=min(most, plan.batch))

    return dict(zip(job.names, _maps(job, plan_of, workers, len(job.names), on_block), strict=True))


def _maps(
    job: Prediction, plan_of: Callable[[], Plan], workers: Workers, count: int,
    on_block: Callable[[float], object],
) -> list[np.ndarray]:  # fmt: skip
    """The first `count` output images, in memory."""
    stack = job.stack
    down, across = job.scale
    *_, height, width = stack.frames.shape
    shape = (len(stack.frames), job.channels, *job.depth, height * down, width * across)
    check_memory(4.0 * count * math.prod(shape), "result", "pass out, or fewer frames")
    maps = [np.empty(shape, np.float32) for _ in range(count)]
    plan = plan_of()
    blocks = _blocks(plan, stack, 1)

    def write(block: Block, images: list[np.ndarray]) -> None:
        frames = slice(block.first, block.first + block.count)
        rows, columns = (
            slice(a * by, b * by) for (a, b), by in ((block.rows, down), (block.columns, across))
        )
        for whole, part in zip(maps, images, strict=False):
            whole[frames, ..., rows, columns] = part

    for i, _ in enumerate(_shown(workers.compute(plan, blocks, write), blocks, blocks)):
        on_block((i + 1) / len(blocks))
    return [like_output(stack, job.scale, ()).restore(each) for each in maps]


def _result(target: Target, ceiling: float) -> Any:
    """The written image, as an array if it is small."""
    pixels = target.opened()
    small = math.prod(pixels.shape) * pixels.dtype.itemsize <= SMALL * ceiling
    return np.array(pixels[...]) if small else pixels


def map_files(out: str | Path, names: Sequence[str]) -> list[Path]:
    """The file of each output image: `out` for the first, out_NAME for the others.

    In Zarr, each image has its own store, because viewers show one image per store, and pixel types differ.
    """
    out = Path(out)
    stem, suffixes = out.stem, out.suffix
    if stem.lower().endswith(".ome"):
        stem, suffixes = stem[:-4], stem[-4:] + suffixes
    return [out, *(out.with_name(f"{stem}_{name}{suffixes}") for name in names[1:])]


def _check_arguments(draws: int, statistic: str, tile: int | None) -> None:
    if statistic not in STATISTICS:
        raise UserError(f"statistic: got '{statistic}', allowed are {', '.join(STATISTICS)}")
    if statistic == "std" and draws == 1:
        raise UserError(f"draws: got {draws}, must be at least 2 for the std")
    check_tile(tile)
