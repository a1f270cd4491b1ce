"""A trained run on new images: one pass of the student, or many draws of the sampler."""

import math
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from distill.denoiser import DirectDenoiser
from distill.errors import UserError, checks_of
from distill.files import check_file, scratch_file
from distill.hardware import Hardware, Precision
from distill.images import tiff
from distill.images.sources import Images, as_stack, check_channels
from distill.images.statistics import check_finite
from distill.limits import check_limits
from distill.memory import check_memory, free_memory
from distill.prediction.pretrained import PRETRAINED, pretrained_denoiser, pretrained_sampler
from distill.prediction.tiles import FittingTiles, check_tile
from distill.runs import checkpoint
from samplers import PosteriorSampler, posterior_mean, posterior_median, posterior_std

Statistic = Literal["mean", "median", "std"]
STATISTICS = {"mean": posterior_mean, "median": posterior_median, "std": posterior_std}


def predict(
    run: str | os.PathLike[str] | DirectDenoiser | PosteriorSampler,
    noisy: Images,
    out: str | Path | None = None,
    *,
    draws: int = 0,
    statistic: Statistic = "mean",
    tile: int | None = None,
    halo: int = 64,
    dtype: Literal["float32", "input"] = "float32",
    overwrite: bool = False,
    device: str | None = None,
    precision: Precision = "auto",
    axes: str | None = None,
    trust: str | Sequence[str] = (),
) -> np.ndarray:
    """Denoises every frame, in raw counts, and keeps the images' axes -> the denoised array.

    A student with several output images, such as an uncertainty, writes the others beside `out`:
    denoised_std.tif. What is returned is the central one.

    Args:
        run: a run or its folder, or a DirectDenoiser; with draws, a sampler; or "pretrained", the networks
            that ship with the package, for a first answer before any training.
        out: TIFF to write, with the pixel size and axes of the input.
        draws: number of draws of the sampler; 0 for the student's one pass.
        statistic: what the draws become: their mean, median or std, pixel by pixel.
        tile: side in pixels of square tiles, for images too large to pass whole. Default: no tiles.
        halo: pixels around each tile that the networks see and that are cut off.
        dtype: type of the pixels written: "float32", or "input", rounded and clipped to the input's type.
        overwrite: replace `out` if it exists.
        device: "cpu", "cuda", "cuda:1", "mps". Default: the best one of this machine.
        precision: "auto" (bf16 where the hardware has it), "bf16" or "fp32".
        axes: letters of the images' dimensions, of STCZYX. Default: what the file says.
        trust: your modules whose classes the run's files may name, and so have imported. Default: none.
    """
    check_limits(locals())
    _check_arguments(draws, statistic, tile)
    hardware = Hardware(device, precision)
    stack = as_stack(noisy, axes)
    name = checkpoint.name_of(run)
    if run == PRETRAINED and not Path(PRETRAINED).exists():
        run = pretrained_sampler(stack) if draws else pretrained_denoiser(stack)
    answer, names, trained_on = _answer(run, draws, statistic, hardware.device, trust)
    files = [] if out is None else map_files(out, names)
    for file in files:
        check_file(file, tiff.ENDINGS, overwrite, 4.0 * len(files) * stack.pixels.size)
    check_channels(stack, name, trained_on)
    check_finite(stack)
    frames, channels, *size = stack.frames.shape
    maps = _room((frames, len(names) * channels, *size), None if out is None else Path(out).parent)
    in_tiles = FittingTiles(answer, tile, halo)
    for i in tqdm(range(len(stack.frames)), desc="predict", unit="frame"):
        noisy_frame = torch.from_numpy(np.array(stack.frames[i], dtype=np.float32))[None].to(hardware.device)
        with checks_of(name), torch.inference_mode(), hardware.autocast():
            maps[i] = in_tiles(noisy_frame)[0].float().cpu().numpy()
        if bad := int((~np.isfinite(maps[i])).sum()):
            raise UserError(
                f"{name}: its answer to frame {i} of {stack.name} has {bad} pixels that are NaN or infinite; "
                "nothing was written; train it again, or pass --precision fp32"
            )
    images = np.split(maps, len(names), axis=1)
    for file, map_name, image in zip(files, names, images, strict=False):
        kind = "float32" if map_name == "std" else dtype  # whole counts would be too coarse for a spread
        tiff.write(file, image, stack, dtype=kind, overwrite=overwrite)
    return stack.restore(images[0])


def _answer(
    run: str | os.PathLike[str] | DirectDenoiser | PosteriorSampler,
    draws: int, statistic: Statistic, device: torch.device, trust: str | Sequence[str],
) -> tuple[Callable[[Tensor], Tensor], Sequence[str], int | None]:  # fmt: skip
    """((B, C, H, W) -> (B, len(names) * C, H, W), names, the C that it was trained on if that is known)."""
    if isinstance(run, PosteriorSampler) and draws:
        return partial(STATISTICS[statistic], run.eval().to(device), n=draws), [statistic], None
    denoiser = checkpoint.load_denoiser(run, trust=trust).to(device)
    if draws:
        sampler = checkpoint.load_sampler(run, trust=trust).to(device)
        return partial(STATISTICS[statistic], sampler, n=draws), [statistic], denoiser.channels

    def one_pass(noisy: Tensor) -> Tensor:
        return torch.cat(list(denoiser.maps(noisy).values()), dim=1)

    return one_pass, denoiser.loss.outputs, denoiser.channels


def _room(shape: tuple[int, ...], folder: Path | None) -> np.ndarray:
    """float32 of this shape: in memory, or, where that would take more than half of what is free, in a file
    without a name in the folder."""
    size = 4 * math.prod(shape)
    if 2 * size <= free_memory():
        return np.empty(shape, np.float32)
    if folder is None:
        check_memory(size, "result", "pass out, which lets it lie on the disk, or fewer frames")
        return np.empty(shape, np.float32)
    with scratch_file(folder, size) as file:
        return np.memmap(file, np.float32, "r+", shape=shape)


def map_files(out: str | Path, names: Sequence[str]) -> list[Path]:
    """The file of each output image: `out` for the first, out_NAME for the others."""
    out = Path(out)
    return [out, *(out.with_name(f"{out.stem}_{name}{out.suffix}") for name in names[1:])]


def _check_arguments(draws: int, statistic: str, tile: int | None) -> None:
    if statistic not in STATISTICS:
        raise UserError(f"statistic: got '{statistic}', allowed are {', '.join(STATISTICS)}")
    if statistic == "std" and draws == 1:
        raise UserError(f"draws: got {draws}; must be at least 2 for the std")
    check_tile(tile)
