"""A finished sampler's draws on disk, so that many students can be trained without running it."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from distill.errors import UserError
from distill.files import Unfinished, write_json
from distill.hardware import Hardware, Precision
from distill.images.sources import Images, as_stack
from distill.images.statistics import statistics
from distill.prediction.tiles import in_tiles
from distill.runs import checkpoint
from samplers import CachedDraws, PosteriorSampler
from samplers.cached import fingerprint


def cache_draws(
    run: str | os.PathLike[str] | PosteriorSampler,
    images: Images,
    out: str | Path,
    *,
    draws: int = 32,
    keep: int | None = None,
    tile: int | None = None,
    halo: int = 64,
    device: str | None = None,
    precision: Precision = "auto",
    axes: str | None = None,
    trust: str | Sequence[str] = (),
) -> CachedDraws:
    """Draws of every frame, written to the folder `out` -> the sampler to train students with.

    float16 in units of the images' standard deviation: 2 bytes * draws per pixel. A stopped run
    resumes with the first frame that is not finished.

    Args:
        run: a run or its folder, or a sampler.
        draws: number of draws of each frame.
        keep: number of values kept per pixel: means of equal shares of the sorted draws, spread to
            the draws' own mean and std. Enough for losses that look at one pixel at a time, and for
            them alone: neighbouring pixels no longer belong to one draw. Default: all draws.
        tile: side in pixels of square tiles, for images too large to pass whole; each is drawn on its
            own. Default: no tiles.
        halo: pixels around each tile that the sampler sees.
        device: "cpu", "cuda", "cuda:1", "mps". Default: the best one of this machine.
        precision: "auto" (bf16 where the hardware has it), "bf16" or "fp32".
        axes: letters of the images' dimensions, of STCZYX. Default: what the file says.
        trust: your modules whose classes the run's files may name, and so have imported. Default: none.
    """
    if draws < 1 or (keep is not None and (keep < 1 or draws % keep)):
        raise UserError(f"draws, keep: got {draws}, {keep}; keep must divide draws, both at least 1")
    hardware, out = Hardware(device, precision), Path(out)
    sampler = checkpoint.load_sampler(run, trust=trust).to(hardware.device)
    stack = as_stack(images, axes)
    mean, std = statistics(stack)
    n, channels, *size = stack.frames.shape
    header = {
        "name": stack.name, "images": fingerprint(stack.frames), "draws": draws, "keep": keep,
        "mean": mean.ravel().tolist(), "std": std.ravel().tolist(),
    }  # fmt: skip
    state = Unfinished(out / "unfinished.json", header)
    cache, done = _open(out, state, (n, keep or draws, channels, *size))

    def answer(noisy: Tensor) -> Tensor:  # (1, C, h, w) -> (1, K * C, h, w)
        drawn = torch.stack(list(sampler.draws(noisy, draws)))
        return (drawn if keep is None else _shares(drawn, keep)).transpose(0, 1).flatten(1, 2)

    for i in tqdm(range(done, n), desc="cache", unit="frame", initial=done, total=n):
        noisy = torch.from_numpy(np.array(stack.frames[i], dtype=np.float32))[None].to(hardware.device)
        with torch.inference_mode(), hardware.autocast():
            drawn = in_tiles(answer, noisy, tile, halo).float().cpu().numpy()
        cache[i] = (drawn.reshape(-1, channels, *size) - mean) / std
        cache.flush()
        state.save(i + 1)
    write_json(out / "draws.json", header)
    state.delete()
    return CachedDraws(str(out))


def _open(out: Path, state: Unfinished, shape: tuple[int, ...]) -> tuple[np.memmap, int]:
    """The array on disk, and how many frames of it a stopped run has finished."""
    if (out / "draws.json").exists():
        raise UserError(f"{out}: holds a finished cache; pass another folder, or delete it first")
    if state.other():
        raise UserError(f"{out}: holds a part of another cache; pass another folder, or delete it")
    if done := state.load():
        return np.lib.format.open_memmap(out / "draws.npy", mode="r+"), done
    out.mkdir(parents=True, exist_ok=True)
    cache = np.lib.format.open_memmap(out / "draws.npy", mode="w+", dtype=np.float16, shape=shape)
    state.save(0)
    return cache, 0


def _shares(draws: Tensor, keep: int) -> Tensor:
    """(K, ...) -> (keep, ...) with the same mean and std per pixel."""
    shares = draws.sort(dim=0).values.unflatten(0, (keep, -1)).mean(1)
    mean = shares.mean(0)
    lost = draws.std(0, correction=0) / shares.std(0, correction=0).clamp(min=1e-12)
    return mean + (shares - mean) * lost
