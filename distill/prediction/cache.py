"""A finished sampler's draws on disk, so that many students can be trained without running it."""

import math
import os
from collections.abc import Sequence
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
    """Draws of every frame, written to the folder `out` -> the sampler to train students with.

    float16 in units of the images' standard deviation: 2 bytes * draws per pixel. A stopped run
    resumes with the first frame that is not finished, and ends with the same draws as an undisturbed one.

    Args:
        run: a run or its folder, or a sampler.
        draws: number of draws of each frame.
        keep: number of values kept per pixel: means of equal shares of the sorted draws, spread to
            the draws' own mean and std. Enough for losses that look at one pixel at a time, and for
            them alone: neighbouring pixels no longer belong to one draw. Default: all draws.
        tile: side in pixels of square tiles, for images too large to pass whole; each is drawn on its
            own. Default: 1024 beyond 4 million pixels, else no tiles.
        halo: pixels around each tile that the sampler sees.
        seed: seed of the draws; each frame has its own from it.
        device: "cpu", "cuda", "cuda:1", "mps". Default: the best one of this machine.
        precision: "auto" (bf16 where the hardware has it), "bf16" or "fp32".
        axes: letters of the images' dimensions, of STCZYX. Default: what the file says.
        trust: your modules whose classes the run's files may name, and so have imported. Default: none.
        conditions: what the run was trained with beside the images, such as a mask: one frame for all images
            or one for each. Default: none.
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
        drawn = torch.stack(list(sampler.draws(noisy, draws)))
        return (drawn if keep is None else _shares(drawn, keep)).transpose(0, 1).flatten(1, 2)

    scale = factors(sampler.scale)
    with locked(out, "cache"):
        state = Unfinished(out / "unfinished.json", header)
        cache, checksums = _open(out, state, (n, keep or draws, channels, *size))
        done = len(checksums)
        for i in tqdm(range(done, n), desc="cache", unit="frame", initial=done, total=n):
            noisy = torch.from_numpy(np.array(stack.frames[i], dtype=np.float32))[None].to(hardware.device)
            with torch.inference_mode(), hardware.autocast(), seeded(hardware.device, seed, i):
                for place in tiles(noisy.shape[-2:], tile, halo):
                    drawn = answer(noisy[(..., *place.seen)]).float().cpu().numpy()
                    drawn = drawn.reshape(-1, channels, *drawn.shape[-2:])
                    larger = place.enlarged(scale)
                    cache[(i, ..., *larger.kept)] = (drawn[(..., *larger.inside)] - mean) / std
            cache.flush()
            checksums.append(_checksum(cache[i], i, stack.name))
            state.save(checksums)
        write_json(
            out / "draws.json",
            sealed(header | {"layout": layout(out / "draws.npy", cache), "checksums": checksums}),
        )
        state.delete()
    return CachedDraws(str(out))


def _draw_statistics(
    sampler: PosteriorSampler, stack: Stack, hardware: Hardware
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and std of draws of the middles of some frames, units in which all are kept as float16: to three
    digits, since a stopped run has to find the same again."""
    frames = torch.from_numpy(some_frames(stack, 8, 128))
    with torch.inference_mode(), hardware.autocast(), seeded(hardware.device, 0), checks_of():
        found = draw_statistics(sampler, (each[None].to(hardware.device) for each in frames))
    mean, std = (np.array([float(f"{v:.3g}") for v in each.flatten()], np.float32) for each in found)
    return mean[:, None, None], std[:, None, None]


def _identity(sampler: PosteriorSampler) -> dict[str, Any]:
    """What tells a sampler from another: how it was made, as far as that is plain data, and its weights."""
    weights = {name: value.detach().cpu().contiguous() for name, value in sampler.state_dict().items()}
    return {"made": describe(sampler) or type(sampler).__name__, "weights": digest(weights, {})}


def _open(out: Path, state: Unfinished, shape: tuple[int, ...]) -> tuple[np.memmap, list[int]]:
    """The array on disk, and the checksums of the frames that a stopped run has finished."""
    path, checksums = out / "draws.npy", state.load()
    if (out / "draws.json").exists() and checksums is None:
        raise UserError(f"{out}: holds a finished cache; pass another folder, or delete it first")
    if other := state.other():
        differ = ", ".join(key for key in state.work if other.get(key) != state.work[key])
        raise UserError(
            f"{out}: holds a part of another cache (it differs in {differ}); pass another, or delete it"
        )
    if path.exists() and not state.path.exists():
        raise UserError(f"{path}: is of no cache that was stopped here; pass another folder, or delete it")
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
    except Exception as error:  # of a damaged header anything, from numpy's parser
        raise UserError(f"{path}: damaged ({error}); delete it and start again") from error
    if cache.shape != shape:
        raise UserError(f"{path}: holds an array of {cache.shape}, not {shape}; delete it and start again")
    return cache


def _checksum(draws: np.ndarray, frame: int, name: str) -> int:
    if not all(np.isfinite(draw).all() for draw in draws):
        raise UserError(
            f"{name}: draws of frame {frame} are NaN, or beyond float16 in units of the images' std; check "
            "the sampler, or pass --precision fp32"
        )
    return checksum(draws)


def _shares(draws: Tensor, keep: int) -> Tensor:
    """(K, ...) -> (keep, ...) with the same mean and std per pixel."""
    shares = draws.sort(dim=0).values.unflatten(0, (keep, -1)).mean(1)
    mean = shares.mean(0)
    lost = draws.std(0, correction=0) / shares.std(0, correction=0).clamp(min=1e-12)
    return mean + (shares - mean) * lost
