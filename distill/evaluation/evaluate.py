"""The paper's Table 1 on your images: the mean and median of n draws against the student's one pass."""

import copy
import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from distill.denoiser import DirectDenoiser
from distill.errors import UserError, checks_of
from distill.evaluation.metrics import lpips, psnr, ssim
from distill.evaluation.residuals import residual_picture, residual_scores
from distill.evaluation.stored_draws import StoredDraws
from distill.evaluation.tables import Row, distinct, format_table, table1, write_csv
from distill.hardware import Precision, autocast, choose_device, synchronise, working_memory
from distill.images.stack import Images, as_stack, spread
from distill.plots.pictures import comparison
from distill.runs import checkpoint
from distill.training.cost import training_cost
from samplers import NoiseModel, PosteriorSampler

Pairs = list[tuple[Tensor, Tensor | None]]
Metrics = dict[str, Callable[[Tensor, Tensor], float]]
INPUT, TRUTH = "noisy input", "ground truth"


def evaluate(
    run: str | Path,
    noisy: Images,
    clean: Images | None = None,
    out: str | Path | None = None,
    *,
    draws: Iterable[int] = (1, 10, 100),
    frames: int | None = None,
    perceptual: bool = False,
    cost: bool = False,
    device: str | None = None,
    precision: Precision = "auto",
    axes: str | None = None,
) -> list[Row]:
    """PSNR, SSIM, seconds and memory of the input, of the sampler's n draws and of the student.

    Without ground truth: what the residuals tell (`residual_scores`), and how close each image is
    to the mean of the most draws. A stopped evaluation goes on with the next draw when it is called
    again with the same arguments.

    Args:
        run: folder of a run, with its sampler and its student.
        clean: the ground truth: one frame for all noisy frames, or one for each.
        out: folder for evaluation.csv, .md, .npz (the first frame's images) and .png, with ground truth
            psnr_against_time.svg and without residuals.png; the run's own unless told.
        draws: how many draws to average.
        frames: only so many noisy frames, spread evenly; all unless told.
        perceptual: LPIPS too; its network must be there or be downloaded.
        cost: measure what training takes too, into the run's cost.txt (`training_cost`).
    """
    sampler, denoiser = checkpoint.load_sampler(run), checkpoint.load_denoiser(run)
    noisy = as_stack(noisy, axes)  # read once
    pairs = paired(noisy, clean, axes, frames)
    device, out = choose_device(device), Path(run if out is None else out)
    metrics: Metrics = {"psnr": psnr, "ssim": ssim} | ({"lpips": lpips()} if perceptual else {})
    out.mkdir(parents=True, exist_ok=True)
    rows, images = compare(sampler, denoiser, pairs, draws, device, precision, metrics, out / "unfinished")
    rows = [{"data": noisy.name, "run": Path(run).name} | row for row in rows]
    write_csv(out / "evaluation.csv", rows)
    (out / "evaluation.md").write_text(format_table(rows) + "\n")
    np.savez_compressed(out / "evaluation.npz", **images)
    comparison(out / "evaluation.png", _titled(images, rows))
    if clean is not None:
        from distill.plots.curves import psnr_against_time

        for svg, _ in psnr_against_time(rows):
            (out / "psnr_against_time.svg").write_text(svg)
    else:
        others = (INPUT, *(name for name in images if name.startswith("student ")))
        shown = {name: torch.from_numpy(v)[None] for name, v in images.items() if name not in others}
        residual_picture(out / "residuals.png", pairs[0][0], shown, _noise_model(sampler))
    shutil.rmtree(out / "unfinished")
    if cost:
        found = training_cost(run, noisy, device=str(device), precision=precision, axes=axes)
        (Path(run) / "cost.txt").write_text(f"{found}\n")
    return rows


def paired(noisy: Images, clean: Images | None, axes: str | None = None, frames: int | None = None) -> Pairs:
    """(noisy, clean) of each frame, or of `frames` of them, spread evenly; each (C, H, W) float32."""
    noisy_stack = as_stack(noisy, axes)
    chosen = spread(len(noisy_stack.frames), frames or len(noisy_stack.frames))
    if clean is None:
        return [(_tensor(noisy_stack.frames[i]), None) for i in chosen]
    clean_stack = as_stack(clean, axes)
    n_noisy, n_clean = len(noisy_stack.frames), len(clean_stack.frames)
    if clean_stack.frames.shape[1:] != noisy_stack.frames.shape[1:] or n_clean not in (1, n_noisy):
        raise UserError(
            f"clean: got frames {tuple(clean_stack.frames.shape)} for noisy {noisy_stack.frames.shape} "
            "(N, C, Y, X); pass one frame, or as many, of the same size"
        )
    return [
        (_tensor(noisy_stack.frames[i]), _tensor(clean_stack.frames[i if n_clean > 1 else 0])) for i in chosen
    ]


def compare(
    sampler: PosteriorSampler,
    denoiser: DirectDenoiser,
    pairs: Pairs,
    draws: Iterable[int],
    device: torch.device,
    precision: Precision = "auto",
    metrics: Metrics | None = None,
    unfinished: Path | None = None,
) -> tuple[list[Row], dict[str, np.ndarray]]:
    """(table rows averaged over the (noisy, clean) pairs of (C, H, W), images (H, W) of the first).

    unfinished: folder for what is done so far; a temporary one unless told.
    """
    counts, metrics = sorted(set(draws)), metrics or {"psnr": psnr, "ssim": ssim}
    sampler.eval().to(device), denoiser.eval().to(device)
    frames: list[list[Row]] = []
    with ExitStack() as stack:
        folder = unfinished or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        _begin_or_go_on(folder, _fingerprint(sampler, denoiser, pairs, counts, metrics))
        stack.enter_context(torch.inference_mode())
        stack.enter_context(autocast(device, precision))
        if counts:
            next(sampler.draws(pairs[0][0].to(device)[None], 1))  # the first draw allocates
        for index, (noisy, clean) in enumerate(tqdm(pairs, desc="evaluate", unit="image")):
            finished = folder / f"{index}.rows.json"
            if not finished.exists():
                drawn = StoredDraws(
                    folder / f"{index}", sampler, noisy.to(device)[None], max(counts, default=0)
                )
                with checks_of(type(sampler).__name__):
                    answers = list(_answers(drawn, denoiser, noisy, clean, counts, device))
                if index == 0:
                    np.savez(folder / "images.npz", **{name: mean[0] for name, mean, _, _ in answers})
                rows = _judged(answers, noisy, clean, metrics, _noise_model(sampler))
                finished.write_text(json.dumps(rows))
                drawn.delete()
            frames.append(json.loads(finished.read_text()))
        rows = [_mean_row(same_image) for same_image in zip(*frames, strict=True)]
        memory = _memory(sampler, denoiser, pairs[0][0].to(device)[None], counts, device)
        for row in rows:
            row["memory_mb"] = next((v for kind, v in memory.items() if kind in row["image"]), 0.0)
        with np.load(folder / "images.npz") as stored:
            images = dict(stored)
    if pairs[0][1] is not None:
        images[TRUTH] = pairs[0][1][0].numpy()
    return rows, images


def _answers(
    drawn: StoredDraws, denoiser: DirectDenoiser, noisy: Tensor, clean: Tensor | None, counts: list[int],
    device: torch.device,
) -> Iterator[tuple[str, Tensor, Tensor, float]]:  # fmt: skip
    """(name, mean, median, seconds) of the input, of each number of draws, and of the student's maps."""
    yield INPUT, noisy, noisy, 0.0
    for n in counts:
        yield f"{n} draw{'s' * (n > 1)}", *drawn.take(n)
    noisy = noisy.to(device)[None]
    denoiser.maps(noisy)  # the first pass allocates
    synchronise(device)
    started = time.perf_counter()
    maps = denoiser.maps(noisy)
    synchronise(device)
    seconds = time.perf_counter() - started
    for i, (name, image) in enumerate(maps.items()):
        image = image[0].float().cpu()
        yield f"student {name}" if i else "student", image, image, seconds


def _judged(
    answers: list[tuple[str, Tensor, Tensor, float]], noisy: Tensor, clean: Tensor | None,
    metrics: Metrics, noise_model: NoiseModel | None,
) -> list[Row]:  # fmt: skip
    """Each answer against the ground truth, or where there is none, against the noisy image."""
    means = {name: mean for name, mean, _, _ in answers}
    most_draws = [name for name in means if "draw" in name][-1:]
    rows: list[Row] = []
    for name, mean, middle, seconds in answers:
        row: Row = {"image": name, "seconds_per_image": seconds}
        if name == "student std":  # no estimate of the image
            continue
        if clean is not None:
            row |= {f"{key}_mean": metric(mean, clean) for key, metric in metrics.items()}
            row |= {f"{key}_median": metric(middle, clean) for key, metric in metrics.items()}
        elif name != INPUT:
            row |= residual_scores(noisy, mean, noise_model)
            if name not in most_draws and most_draws:
                row["psnr_to_draws"] = psnr(mean, means[most_draws[0]])
        rows.append(row)
    return rows


def _mean_row(frames: tuple[Row, ...]) -> Row:
    numbers = [key for key in frames[0] if key != "image"]
    return {"image": frames[0]["image"]} | {
        key: float(np.mean([frame[key] for frame in frames])) for key in numbers
    }


def _memory(
    sampler: PosteriorSampler,
    denoiser: DirectDenoiser,
    noisy: Tensor,
    counts: list[int],
    device: torch.device,
) -> dict[str, float]:
    """MB beyond the networks and the image; draws are streamed, so any number needs what one does."""
    memory = {"student": working_memory(lambda: denoiser.maps(noisy), device)}
    if counts:
        memory["draw"] = working_memory(lambda: next(sampler.draws(noisy, 1)), device)
    return memory


def _noise_model(sampler: PosteriorSampler) -> NoiseModel | None:
    """The sampler's, on the CPU, where it has one of raw counts."""
    noise_model = getattr(sampler, "noise_model", None)
    return copy.deepcopy(noise_model).cpu() if isinstance(noise_model, NoiseModel) else None


def _begin_or_go_on(folder: Path, fingerprint: str) -> None:
    """Empties the folder unless it holds a part of the same evaluation."""
    stored = folder / "fingerprint"
    if not stored.exists() or stored.read_text() != fingerprint:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        stored.write_text(fingerprint)


def _fingerprint(
    sampler: PosteriorSampler, denoiser: DirectDenoiser, pairs: Pairs, counts: list[int], metrics: Metrics
) -> str:
    digest = hashlib.sha256(repr((len(pairs), counts, list(metrics))).encode())
    weights = [*sampler.state_dict().values(), *denoiser.state_dict().values()]
    for tensor in (*weights, *(image for pair in pairs for image in pair if image is not None)):
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _titled(images: dict[str, np.ndarray], rows: list[Row]) -> dict[str, np.ndarray]:
    """Images with their PSNR, of all frames, as titles."""
    scores = {row["image"]: row.get("psnr_mean") for row in rows}
    return {
        name + (f"\n{scores[name]:.2f} dB" if scores.get(name) is not None else ""): image
        for name, image in images.items()
        if name != "student std"
    }


def _tensor(frame: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(frame, dtype=np.float32))  # a memory map is not writable


def evaluate_all(
    runs: Sequence[str | Path],
    data: Sequence[tuple[Images, Images | None]],
    out: str | Path,
    **options: Any,
) -> list[Row]:
    """`evaluate` of every run on every (noisy, clean), into a folder each, and table1.md and .csv."""
    out, rows = Path(out), []
    data = [(as_stack(noisy, options.get("axes")), clean) for noisy, clean in data]
    names = distinct([Path(noisy.name).stem for noisy, _ in data])
    for run, label in zip(runs, distinct([Path(run).name for run in runs]), strict=True):
        for (noisy, clean), name in zip(data, names, strict=True):
            found = evaluate(run, noisy, clean, out / label / name, **options)
            rows += [row | {"data": name, "run": label} for row in found]
    write_csv(out / "table1.csv", rows)
    if all(clean is not None for _, clean in data):
        (out / "table1.md").write_text(table1(rows) + "\n")
    return rows
