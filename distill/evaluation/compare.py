"""Compares draws and student on pairs of noisy and clean frames, with one table row for each answer."""

import copy
import hashlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from distill.denoiser import DirectDenoiser
from distill.errors import checks_of
from distill.evaluation.checks import PARTS, by_brightness, columns
from distill.evaluation.metrics import psnr, ssim
from distill.evaluation.pairs import Pairs
from distill.evaluation.residuals import residual_scores
from distill.evaluation.stored_draws import StoredDraws
from distill.evaluation.tables import Row
from distill.files import Unfinished, whole_file
from distill.hardware import Hardware, synchronize, working_memory
from distill.plots.pictures import middle_plane
from distill.prediction.receptive_field import maps_in_tiles
from distill.prediction.tiles import fixed_tile
from samplers import ChannelNoise, GaussianNoise, NoiseModel, PosteriorSampler
from students import StabilizedUNet

Metrics = dict[str, Callable[[Tensor, Tensor], float]]


INPUT, TRUTH = "noisy input", "ground truth"
CENTRAL = ("mean", "median", "huber")  # outputs that should have no bias; a mode or a draw may have one


class Answer(NamedTuple):
    """Answers to an image, each (C, *S), with the variance of the draws."""

    name: str
    mean: Tensor
    median: Tensor
    variance: Tensor | None
    seconds: float


def compare(
    sampler: PosteriorSampler,
    denoiser: DirectDenoiser,
    pairs: Pairs,
    draws: Iterable[int],
    hardware: Hardware,
    metrics: Metrics | None = None,
    unfinished: Path | None = None,
) -> tuple[list[Row], dict[str, np.ndarray], list[Row]]:
    """(table rows, images (H, W) of the first pair, rows of `by_brightness`).

    The rows are averages over the pairs of noisy and clean frames (C, *S); the image of a volume is its
    middle plane. unfinished: folder for
    intermediate results, from which an interrupted comparison resumes. Default: a temporary folder.
    """
    counts, metrics = sorted(set(draws)), metrics or {"psnr": psnr, "ssim": ssim}
    device = hardware.device
    for network in (sampler, denoiser):
        network.eval().to(device)
    with ExitStack() as stack:
        folder = unfinished or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        work = _fingerprint(sampler, denoiser, pairs, counts, metrics)
        state = Unfinished(folder / "state.json", work)
        frames: list[tuple[list[Row], list[Row]]] | None = state.load()
        if frames is None:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            state.save(frames := [])
        stack.enter_context(torch.inference_mode())
        stack.enter_context(hardware.autocast())
        if counts:
            next(sampler.draws(_part(pairs[0][0]).to(device)[None], 1))  # the first draw allocates
        done = len(frames)
        for i in tqdm(range(done, len(pairs)), desc="evaluate", unit="image", initial=done, total=len(pairs)):
            noisy, clean = pairs[i]
            total = max(counts, default=0)
            drawn = StoredDraws(folder / f"{i}", sampler, noisy.to(device)[None], total, i, work)
            with checks_of(type(sampler).__name__):
                answers = list(_answers(drawn, denoiser, noisy, counts, device))
            noisy = _plane(denoiser, noisy)
            if not answers or answers[-1].mean.shape == noisy.shape:  # otherwise they cannot be compared
                answers.insert(0, Answer(INPUT, noisy, noisy, None, 0.0))
            if i == 0:
                with whole_file(folder / "images.npz") as part, open(part, "wb") as file:
                    first: dict[str, Any] = {answer.name: middle_plane(answer.mean)[0] for answer in answers}
                    np.savez(file, **first)
            judged = _judged(answers, noisy, clean, metrics, noise_model_of(sampler, denoiser))
            frames.append((judged, _parts(answers, noisy, clean, total, denoiser.loss.outputs[0])))
            state.save(frames)
            drawn.delete()
        judged, parted = zip(*frames, strict=True)
        rows = [_mean_row(same_image) for same_image in zip(*judged, strict=True)]
        parts = [_mean_row(same_part) for same_part in zip(*parted, strict=True)]
        for part in parts:
            part["pixels"] = float(part["pixels"]) * len(frames)
        memory = _memory(sampler, denoiser, _part(pairs[0][0]).to(device)[None], counts, device)
        for row in rows:
            row.update(("memory_mb", v) for kind, v in memory.items() if kind in str(row["image"]))
            row.update(columns(parts, str(row["image"])))
        with np.load(folder / "images.npz") as stored:
            images = dict(stored)
    if pairs[0][1] is not None:
        images[TRUTH] = middle_plane(pairs[0][1])[0].numpy()
    return rows, images, parts


def _answers(
    drawn: StoredDraws, denoiser: DirectDenoiser, noisy: Tensor, counts: list[int], device: torch.device
) -> Iterator[Answer]:
    """Yields the answers for each number of draws, and the student's maps."""
    for n in counts:
        yield Answer(f"{n} draw{'s' * (n > 1)}", *drawn.take(n))
    noisy = noisy.to(device)[None]
    denoiser.maps(_part(noisy[0])[None])  # the first pass allocates
    synchronize(device)
    started = time.perf_counter()
    maps = maps_in_tiles(denoiser, noisy)
    synchronize(device)
    seconds = time.perf_counter() - started
    for i, (name, images) in enumerate(maps.items()):
        image = images[0].float().cpu()
        yield Answer(f"student {name}" if i else "student", image, image, None, seconds)


def _plane(denoiser: nn.Module, noisy: Tensor) -> Tensor:
    """The plane (C, *S) itself, without neighbouring planes."""
    return denoiser.plane(noisy, dim=0) if isinstance(denoiser, DirectDenoiser) else noisy


def _part(noisy: Tensor) -> Tensor:
    """The part of an image (C, *S) that is computed at once."""
    side = fixed_tile(noisy.shape[1:])
    return noisy[..., :side, :side]


def _judged(
    answers: list[Answer], noisy: Tensor, clean: Tensor | None,
    metrics: Metrics, noise_model: NoiseModel | None,
) -> list[Row]:  # fmt: skip
    """Table rows of the answers, compared with the ground truth, or without it with the noisy image."""
    means = {answer.name: answer.mean for answer in answers}
    most_draws = [name for name in means if "draw" in name][-1:]
    rows: list[Row] = []
    for name, mean, median, _, seconds in answers:
        row: Row = {"image": name} | ({"seconds_per_image": seconds} if name != INPUT else {})
        if name == "student std":  # not an estimate of the image
            continue
        if clean is not None:
            row |= {f"{key}_mean": metric(mean, clean) for key, metric in metrics.items()}
            row |= {f"{key}_median": metric(median, clean) for key, metric in metrics.items()}
        elif name != INPUT:
            row |= residual_scores(noisy, mean, noise_model) if mean.shape == noisy.shape else {}
            if name not in most_draws and most_draws:
                row["psnr_to_draws"] = psnr(mean, means[most_draws[0]])
        rows.append(row)
    return rows


def _parts(answers: list[Answer], noisy: Tensor, clean: Tensor | None, total: int, output: str) -> list[Row]:
    """`by_brightness` of the most draws, and of the student if its output should have no bias."""
    rows: list[Row] = []
    if answers[0].mean.shape != noisy.shape:  # the noise that is kept cannot be measured
        return rows
    for name, mean, _, variance, _ in answers:
        if total > 1 and name == f"{total} draws":
            rows += by_brightness(name, mean, noisy, clean, variance, total)
        elif name == "student" and clean is not None and output in CENTRAL:
            rows += by_brightness(name, mean, noisy, clean)
    return rows


def _mean_row(frames: tuple[Row, ...]) -> Row:
    numbers = [key for key in frames[0] if key != "image"]
    return {"image": frames[0]["image"]} | {
        key: float(np.mean([float(frame[key]) for frame in frames])) for key in numbers
    }


def _memory(
    sampler: PosteriorSampler,
    denoiser: DirectDenoiser,
    noisy: Tensor,
    counts: list[int],
    device: torch.device,
) -> dict[str, float]:
    """MB beyond the networks and the image. Draws are streamed, so any number needs as much as one."""
    memory = {"student": working_memory(lambda: denoiser.maps(noisy), device)}
    if counts:
        memory["draw"] = working_memory(lambda: next(sampler.draws(noisy, 1)), device)
    return memory


def noise_model_of(sampler: PosteriorSampler, denoiser: nn.Module) -> NoiseModel | None:
    """The sampler's noise model in raw counts, on the CPU; without one, the line that `train` estimated."""
    noise_model = getattr(sampler, "noise_model", None)
    if isinstance(noise_model, NoiseModel):
        return copy.deepcopy(noise_model).cpu()
    networks = (*sampler.modules(), *denoiser.modules())
    return next((_noise_line(each) for each in networks if isinstance(each, StabilizedUNet)), None)


def _noise_line(network: StabilizedUNet) -> NoiseModel:
    """The estimated noise. For correlated noise only its variance is right."""
    lines = zip(network.gain.flatten().tolist(), network.offset.flatten().tolist(), strict=True)
    models = [GaussianNoise(gain=gain, offset=offset) for gain, offset in lines]
    return models[0] if len(models) == 1 else ChannelNoise(models)


def _fingerprint(
    sampler: PosteriorSampler, denoiser: DirectDenoiser, pairs: Pairs, counts: list[int], metrics: Metrics
) -> str:
    digest = hashlib.sha256(repr((len(pairs), counts, list(metrics), PARTS)).encode())
    weights = [*sampler.state_dict().values(), *denoiser.state_dict().values()]
    for tensor in (*weights, *(image for pair in pairs for image in pair if image is not None)):
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
