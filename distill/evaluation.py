"""The paper's Table 1 on your images: the mean and median of n draws against the student's one pass."""

import csv
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from distill import checkpoint
from distill.denoiser import DirectDenoiser
from distill.errors import UserError, checks_of
from distill.hardware import Precision, autocast, choose_device
from distill.images import Images, as_stack, spread
from distill.pictures import comparison
from samplers import PosteriorSampler
from samplers.base import median

Row = dict[str, str | float]
Pairs = list[tuple[Tensor, Tensor]]


def psnr(image: Tensor, clean: Tensor) -> float:
    """20 log10 R - 10 log10 MSE in dB, where R = max(clean) - min(clean); nothing is rescaled."""
    error = (image.double() - clean.double()).square().mean()
    span = clean.max().double() - clean.min().double()
    return float(20 * torch.log10(span) - 10 * torch.log10(error))


def evaluate(
    run: str | Path,
    noisy: Images,
    clean: Images,
    out: str | Path | None = None,
    *,
    draws: Iterable[int] = (1, 10, 100),
    frames: int | None = None,
    device: str | None = None,
    precision: Precision = "auto",
    axes: str | None = None,
) -> list[Row]:
    """PSNR and seconds per image of the input, of the sampler's n draws and of the student.

    Args:
        run: folder of a run, with its sampler and its student.
        clean: the ground truth: one frame for all noisy frames, or one for each.
        out: folder for evaluation.csv and evaluation.png; the run's own unless told.
        draws: how many draws to average.
        frames: only so many noisy frames, spread evenly; all unless told.
    """
    sampler, denoiser = checkpoint.load_sampler(run), checkpoint.load_denoiser(run)
    pairs = paired(noisy, clean, axes, frames)
    out = Path(run if out is None else out)
    out.mkdir(parents=True, exist_ok=True)
    rows, pictures = compare(sampler, denoiser, pairs, draws, choose_device(device), precision)
    write_table(out / "evaluation.csv", rows)
    comparison(out / "evaluation.png", pictures)
    return rows


def paired(noisy: Images, clean: Images, axes: str | None = None, frames: int | None = None) -> Pairs:
    """(noisy, clean) of each frame, or of `frames` of them, spread evenly; each (C, H, W) float32."""
    noisy_stack, clean_stack = as_stack(noisy, axes), as_stack(clean, axes)
    n_noisy, n_clean = len(noisy_stack.frames), len(clean_stack.frames)
    if clean_stack.frames.shape[1:] != noisy_stack.frames.shape[1:] or n_clean not in (1, n_noisy):
        raise UserError(
            f"clean: got frames {tuple(clean_stack.frames.shape)} for noisy {noisy_stack.frames.shape} "
            "(N, C, Y, X); pass one frame, or as many, of the same size"
        )
    return [
        (_tensor(noisy_stack.frames[i]), _tensor(clean_stack.frames[i if n_clean > 1 else 0]))
        for i in spread(n_noisy, frames or n_noisy)
    ]


def compare(
    sampler: PosteriorSampler,
    denoiser: DirectDenoiser,
    pairs: Pairs,
    draws: Iterable[int],
    device: torch.device,
    precision: Precision = "auto",
) -> tuple[list[Row], dict[str, np.ndarray]]:
    """(table rows averaged over the (noisy, clean) pairs of (C, H, W), images of the first pair)."""
    counts = sorted(set(draws))
    sampler.eval().to(device), denoiser.eval().to(device)
    scores: dict[str, list[tuple[float, float, float]]] = {}
    pictures: dict[str, np.ndarray] = {}
    for index, (noisy, clean) in enumerate(tqdm(pairs, desc="evaluate", unit="image")):
        with checks_of(type(sampler).__name__), torch.inference_mode(), autocast(device, precision):
            results = list(_answers(sampler, denoiser, noisy.to(device)[None], counts))
        for name, mean, middle, seconds in results:
            figures = (psnr(mean.cpu(), clean), psnr(middle.cpu(), clean), seconds)
            scores.setdefault(name, []).append(figures)
            if index == 0:
                pictures[f"{name}\n{figures[0]:.2f} dB"] = mean[0].float().cpu().numpy()
        if index == 0:
            pictures["ground truth"] = clean[0].numpy()
    rows: list[Row] = []
    for name, figures in scores.items():
        mean, middle, seconds = np.mean(figures, axis=0)
        rows.append({"image": name, "psnr_mean": mean, "psnr_median": middle, "seconds_per_image": seconds})
    return rows, pictures


def _answers(
    sampler: PosteriorSampler, denoiser: DirectDenoiser, noisy: Tensor, counts: list[int]
) -> Iterator[tuple[str, Tensor, Tensor, float]]:
    """(name, mean, median, seconds) of the input, of each number of draws, and of the student."""
    yield "noisy input", noisy[0], noisy[0], 0.0
    drawn, seconds, started = [], 0.0, time.perf_counter()
    for draw in sampler.draws(noisy, counts[-1]) if counts else ():
        drawn.append(draw[0].float())
        if len(drawn) in counts:
            seconds += _elapsed(started, noisy.device)
            stack = torch.stack(drawn)
            name = "1 draw" if len(drawn) == 1 else f"{len(drawn)} draws"
            yield name, stack.mean(dim=0), median(stack), seconds
            started = time.perf_counter()  # the statistics are not the sampler's time
    started = time.perf_counter()
    denoised = denoiser(noisy)[0]
    yield "student", denoised, denoised, _elapsed(started, noisy.device)


def _elapsed(started: float, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def _tensor(frame: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(frame, dtype=np.float32))  # a memory map is not writable


def write_table(path: Path, rows: list[Row]) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


def format_table(rows: list[Row]) -> str:
    """The rows for the screen."""
    lines = [f"{'':14}{'PSNR mean':>12}{'PSNR median':>14}{'s / image':>12}"]
    for row in rows:
        lines.append(
            f"{row['image']:14}{row['psnr_mean']:9.2f} dB{row['psnr_median']:11.2f} dB"
            f"{row['seconds_per_image']:12.3f}"
        )
    return "\n".join(lines)
