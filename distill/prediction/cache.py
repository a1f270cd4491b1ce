"""Writes the draws of a finished sampler to disk, to train several students without running it again."""

import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from distill.errors import UserError, checks_of
from distill.files import Unfinished, check_folder, reserve, write_json
from distill.hardware import Hardware, Precision, seeded
from distill.images.conditions import seen_by
from distill.images.sources import Images, as_stack, check_channels
from distill.images.stack import Stack
from distill.images.statistics import some_frames, statistics
from distill.images.targets import SAVE_SECONDS
from distill.limits import COUNT, check_limits
from distill.locks import locked
from distill.prediction.tiles import check_tile, fixed_tile, tiles
from distill.runs import checkpoint
from distill.runs.rebuild import describe
from distill.runs.tensors import digest
from samplers import CachedDraws, PosteriorSampler
from samplers.base import draw_statistics
from samplers.cached import checksum, fingerprint, layout, sealed
from students.upscale import factors

log = logging.getLogger(__name__)


def cache_draws(
    run: str | os.PathLike[str] | PosteriorSampler,
    images: Images,
    out: str | Path,
    *,
    draws: int = 32,
    keep: int | None = None,
    tile: int | None = None,
    halo: int = 64,
    seed: int = 0,
    device: str | None = None,
    precision: Precision = "auto",
    axes: str | None = None,
    trust: str | Sequence[str] = (),
    conditions: Images | None = None,
) -> CachedDraws:
    """Writes draws of every frame to the folder `out` -> a sampler that replays them to train students.

    The draws are stored as float16 in units of the images' standard deviation: 2 bytes * draws per pixel. A
    stopped command resumes with its first unfinished frame, a killed one repeats the frames of a few seconds,
    and both write the same draws as without the stop. A finished cache of the same sampler, images and
    settings is used as it is; whether two functions are the same is unknown, so that of a sampler around a
    function is refused.

    Args:
        run: a run or its folder, or a sampler.
        images: noisy images in raw counts: a path, an array or a Stack.
        out: folder to write.
        draws: number of draws of each frame.
        keep: number of stored values per pixel, which divides draws: means of equal shares of the sorted
            draws, scaled to the mean and std of the draws. They suit only losses that use each pixel on its
            own, because neighbouring pixels no longer come from the same draw. Default: all draws.
        tile: side in pixels of square tiles, each of which is drawn separately. Default: 1024 for frames of
            more than 4 million pixels, otherwise no tiles.
        halo: width in pixels of the surroundings of each tile that the sampler sees.
        seed: seed of the draws, from which each frame gets its own.
        device: "cpu", "cuda", "cuda:1", "mps". Default: the best one of this machine.
        precision: "auto" (bf16 if the hardware has it), "bf16" or "fp32".
        axes: letters of the images' dimensions, of STCZYX. Default: the axes in the file.
        trust: your own modules that the run's files may import classes from. Default: none.
        conditions: conditions of the images, such as a mask, as in the training of the run: one frame for
            all images, or one for each. Default: none.

    Raises:
        UserError: if keep does not divide draws, the images do not fit the run, `out` holds other draws, or
            draws are not finite.
    """
    check_limits(locals(), draws=COUNT)
    check_tile(tile)
    if keep is not None and draws % keep:
        raise UserError(f"draws, keep: got {draws}, {keep}; keep must divide draws")
    hardware, out = Hardware(device, precision), check_folder(out)
    sampler = checkpoint.load_sampler(run, trust=trust).to(hardware.device)
    planes = as_stack(images, axes)
    check_channels(planes, checkpoint.name_of(run), getattr(sampler, "channels", None))
    if sampler.dims != 2:
        raise UserError(
            f"{checkpoint.name_of(run)}: draws volumes, and a cache holds draws of planes; train students "
            "with the sampler itself"
        )
    stack = seen_by(sampler, checkpoint.name_of(run), planes, conditions)
    tile = fixed_tile(stack.frames.shape[-2:]) if tile is None else tile
    n, channels, *size = sampler.draw_shape(stack.frames.shape)
    reshapes = [channels, *size] != list(planes.frames.shape[1:])
    mean, std = _draw_statistics(sampler, stack, hardware) if reshapes else statistics(planes)
    header: dict[str, Any] = {
        "name": stack.name, "images": fingerprint(stack.frames), "sampler": _identity(sampler),
        "isotropic": sampler.isotropic, "mirrors": list(sampler.mirrors),
        "draws": draws, "keep": keep, "tile": tile, "halo": halo,
        "seed": seed, "mean": mean.ravel().tolist(), "std": std.ravel().tolist(),
    }  # fmt: skip
    if reshapes or stack is not planes:
        header |= {"channels": stack.frames.shape[1], "scale": factors(sampler.scale)}
        header |= {"out_names": list(sampler.out_names)}

    def answer(noisy: Tensor) -> Tensor:  # (1, C, h, w) -> (1, K * C', h', w')
        samples = torch.stack(list(sampler.draws(noisy, draws)))
        return (samples if keep is None else _shares(samples, keep)).transpose(0, 1).flatten(1, 2)

    scale = factors(sampler.scale)

    def draw(i: int, stored: np.ndarray) -> None:  # frame i -> (K, C', h', w')
        noisy = torch.from_numpy(np.array(stack.frames[i], dtype=np.float32))[None].to(hardware.device)
        with torch.inference_mode(), hardware.autocast(), seeded(hardware.device, seed, i):
            for place in tiles(noisy.shape[-2:], tile, halo):
                samples = answer(noisy[(..., *place.seen)]).float().cpu().numpy()
                samples = samples.reshape(-1, channels, *samples.shape[-2:])
                larger = place.enlarged(scale)
                stored[(..., *larger.kept)] = (samples[(..., *larger.inside)] - mean) / std

    with locked(out, "cache"):
        state = Unfinished(out / "unfinished.json", header)
        if (out / "draws.json").exists() and state.load() is None:
            return _finished(out, state.work)
        cache, checksums = _open(out, state, (n, keep or draws, channels, *size))
        done = len(checksums)
        with _saved(state, cache, checksums) as mark:
            for i in tqdm(range(done, n), desc="cache", unit="frame", initial=done, total=n):
                draw(i, cache[i])
                mark(_checksum(cache[i], i, stack.name))
        write_json(
            out / "draws.json",
            sealed(header | {"layout": layout(out / "draws.npy", cache), "checksums": checksums}),
        )
        state.delete()
    return CachedDraws(str(out))


@contextmanager
def _saved(state: Unfinished, cache: np.memmap, checksums: list[int]) -> Iterator[Callable[[int], None]]:
    """Yields a function that takes the checksum of a finished frame.

    The checksums are saved after the first frame, then every few seconds, because a file of all of them after
    each frame would be quadratic in the number of frames; and at the end, also if that is an error or Ctrl-C.
    """
    saved = -math.inf

    def save() -> None:
        nonlocal saved
        cache.flush()  # first, so that no frame counts as finished before it is on the disk
        state.save(checksums)
        saved = time.monotonic()

    def mark(checksum: int) -> None:
        checksums.append(checksum)
        if time.monotonic() - saved > SAVE_SECONDS:
            save()

    try:
        yield mark
    finally:
        save()


def _draw_statistics(
    sampler: PosteriorSampler, stack: Stack, hardware: Hardware
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and std of draws of the centres of some frames, which are the units of the stored float16 numbers.

    They are rounded to three digits, because a resumed command has to compute the same values.
    """
    frames = torch.from_numpy(some_frames(stack, 8, 128))
    with torch.inference_mode(), hardware.autocast(), seeded(hardware.device, 0), checks_of():
        moments = draw_statistics(sampler, (each[None].to(hardware.device) for each in frames))
    mean, std = (np.array([float(f"{v:.3g}") for v in each.flatten()], np.float32) for each in moments)
    return mean[:, None, None], std[:, None, None]


def _identity(sampler: PosteriorSampler) -> dict[str, Any]:
    """Identity of a sampler: its constructor arguments, as far as they are plain data, and its weights."""
    weights = {name: value.detach().cpu().contiguous() for name, value in sampler.state_dict().items()}
    return {"made": describe(sampler) or type(sampler).__name__, "weights": digest(weights, {})}


def _finished(out: Path, header: dict[str, Any]) -> CachedDraws:
    """The cache that `out` holds. UserError if it is damaged or may have other draws than `header`."""
    try:
        cached = CachedDraws(str(out))
    except ValueError as error:
        raise UserError(f"{out}: holds a damaged cache ({error}); delete it first") from error
    differ = [
        key for key in cached.header.keys() | header.keys() if cached.header.get(key) != header.get(key)
    ]
    if differ := sorted({*differ} - {"layout", "checksums"}):
        reason = f"of other draws (different {', '.join(differ)})"
    elif not isinstance(header["sampler"]["made"], dict):
        reason = "of a sampler that may have been another function"
    else:
        log.info("%s: holds these draws already", out)
        return cached
    raise UserError(f"{out}: holds a finished cache {reason}; pass another folder, or delete it first")


def _open(out: Path, state: Unfinished, shape: tuple[int, ...]) -> tuple[np.memmap, list[int]]:
    """The array on disk, and the checksums of the frames that are already finished."""
    path, checksums = out / "draws.npy", state.load()
    if other := state.other():
        differ = ", ".join(key for key in state.work if other.get(key) != state.work[key])
        raise UserError(
            f"{out}: holds a part of another cache (different {differ}); pass another folder, or delete it"
        )
    if path.exists() and not state.path.exists():
        raise UserError(f"{path}: does not belong to an unfinished cache; pass another folder, or delete it")
    if checksums and path.exists():
        return _reopened(path, shape), checksums
    check_folder(out, 2 * math.prod(shape))
    state.save([])
    try:
        cache = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape)
        reserve(path)
    except UserError:
        state.delete()
        raise
    return cache, []


def _reopened(path: Path, shape: tuple[int, ...]) -> np.memmap:
    try:
        cache = np.lib.format.open_memmap(path, mode="r+")
    except Exception as error:  # numpy's parser raises any exception for a damaged header
        raise UserError(f"{path}: damaged ({error}); delete it and start again") from error
    if cache.shape != shape:
        raise UserError(f"{path}: holds an array of {cache.shape}, not {shape}; delete it and start again")
    return cache


def _checksum(draws: np.ndarray, frame: int, name: str) -> int:
    if not all(np.isfinite(draw).all() for draw in draws):
        raise UserError(
            f"{name}: draws of frame {frame} are NaN, or too large for float16 in units of the images' std; "
            "check the sampler, or pass --precision fp32"
        )
    return checksum(draws)


def _shares(draws: Tensor, keep: int) -> Tensor:
    """Draws (K, ...) -> (keep, ...): means of shares of the sorted draws, with their mean and std."""
    shares = draws.sort(dim=0).values.unflatten(0, (keep, -1)).mean(1)
    mean = shares.mean(0)
    factor = draws.std(0, correction=0) / shares.std(0, correction=0).clamp(
        min=1e-12
    )  # of spread, by averaging
    return mean + (shares - mean) * factor
