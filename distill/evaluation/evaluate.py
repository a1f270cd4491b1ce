"""The paper's Table 1 for your images: the mean and median of n draws, and the student's single pass."""

import json
import math
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distill.denoiser import DirectDenoiser
from distill.evaluation.checks import advice
from distill.evaluation.compare import INPUT, Metrics, compare, noise_model_of
from distill.evaluation.metrics import lpips, psnr, ssim
from distill.evaluation.pairs import paired
from distill.evaluation.tables import Row, distinct, format_table, table1, write_csv
from distill.evaluation.worth import worth
from distill.files import check_folder, whole_file, write_text
from distill.hardware import Hardware, Precision
from distill.images.conditions import seen_by
from distill.images.context import plane_count
from distill.images.sources import Images, as_stack, check_channels
from distill.images.statistics import check_finite
from distill.limits import COUNT, check_limits
from distill.locks import locked
from distill.plots.pictures import comparison, middle_plane
from distill.plots.residuals import residual_curves, residual_picture
from distill.runs import checkpoint
from losses import L2
from samplers import NoiseModel, PosteriorSampler

UNFINISHED = ".evaluation.unfinished"  # a name that no folder of a user has


class NoStudent(DirectDenoiser):
    """Takes the place of the student in a run without one, and gives no image."""

    def __init__(self, sampler: PosteriorSampler) -> None:
        seen = getattr(sampler, "channels", 1) * plane_count(sampler.context) + sampler.conditions
        shape = sampler.out_channels, sampler.scale, sampler.out_names
        super().__init__(nn.Identity(), L2(), seen, *shape, sampler.context, sampler.conditions, sampler.dims)

    def maps(self, noisy: Tensor) -> dict[str, Tensor]:
        return {}


def evaluate(
    run: str | os.PathLike[str],
    noisy: Images,
    clean: Images | None = None,
    out: str | Path | None = None,
    *,
    draws: Iterable[int] = (1, 10, 100),
    frames: int | None = None,
    perceptual: bool = False,
    device: str | None = None,
    precision: Precision = "auto",
    axes: str | None = None,
    trust: str | Sequence[str] = (),
    conditions: Images | None = None,
) -> list[Row]:
    """Measures PSNR, SSIM, seconds and memory of the input, of n draws and of the student.

    Without ground truth it reports statistics of the residuals (`residual_scores`), and the PSNR of each
    image to the mean of the most draws. Below the table it reports how many draws the student is worth,
    deviations of the draws and the student, and remedies; with ground truth these follow from the columns
    `dispersion` and `kept` and from the bias by brightness. An interrupted evaluation resumes with the next
    draw when it is called again with the same arguments.

    Args:
        run: a run or its folder, with its sampler and its student.
        noisy: noisy images.
        clean: ground truth, one frame for all noisy frames or one for each. Default: none.
        out: folder for evaluation.csv, .md, .npz (images of the first frame; of a volume its middle plane)
            and .png, checks.csv (by brightness), and psnr_against_time.svg with ground truth or residuals.png
            and .json without. Default: the folder of the run.
        device: "cpu", "cuda", "cuda:1", "mps". Default: the best device of this machine.
        precision: "auto" (bf16 if the hardware has it), "bf16" or "fp32".
        axes: letters of the images' dimensions, of STCZYX. Default: those of the file.
        draws: numbers of draws to average.
        frames: number of evenly spread noisy frames to use. Default: all.
        perceptual: whether to compute LPIPS too, whose network is downloaded if it is missing.
        trust: your modules whose classes the run may name; they are imported. Default: none.
        conditions: maps that the run was trained with beside the images, such as a mask: one frame for all
            images or one for each. Default: none.
    """
    draws = list(draws)
    check_limits(locals(), draws=COUNT)
    out = check_folder(run if out is None else out)
    sampler = checkpoint.load_sampler(run, trust=trust)
    if checkpoint.has_student(run):
        denoiser = checkpoint.load_denoiser(run, trust=trust)
    else:
        denoiser = NoStudent(sampler)
    noisy = as_stack(noisy, axes)  # read once
    check_channels(noisy, checkpoint.name_of(run), denoiser.plane_channels)
    if clean is not None:
        clean = as_stack(clean, axes)
        check_finite(clean)
    seen = seen_by(denoiser, checkpoint.name_of(run), noisy, conditions)
    pairs = paired(seen, clean, axes, frames, denoiser)
    hardware = Hardware(device, precision)
    check_folder(out, 1e6 + max([1, *draws]) * 4 * math.prod(denoiser.out_shape(pairs[0][0].shape)))
    metrics: Metrics = {"psnr": psnr, "ssim": ssim} | ({"lpips": lpips()} if perceptual else {})
    with locked(out, "evaluate"):
        compared = compare(sampler, denoiser, pairs, draws, hardware, metrics, out / UNFINISHED)
        rows = [{"data": noisy.name, "run": Path(run).name} | row for row in compared[0]]
        noise_model = noise_model_of(sampler, denoiser)
        shown = middle_plane(denoiser.plane(pairs[0][0], dim=0))
        _write(out, rows, *compared[1:], shown, pairs[0][1], noise_model)
        shutil.rmtree(out / UNFINISHED)
    return rows


def _write(
    out: Path, rows: list[Row], images: dict[str, np.ndarray], parts: list[Row], noisy: Tensor,
    clean: Tensor | None, noise_model: NoiseModel | None,
) -> None:  # fmt: skip
    write_csv(out / "evaluation.csv", rows)
    write_csv(out / "checks.csv", parts)
    said = "".join(f"\n- {sentence}" for sentence in worth(rows) + advice(parts))
    write_text(out / "evaluation.md", format_table(rows) + "\n" + (said and f"{said}\n"))
    with whole_file(out / "evaluation.npz") as part, open(part, "wb") as file:
        arrays: dict[str, Any] = dict(images)
        np.savez_compressed(file, **arrays)
    comparison(out / "evaluation.png", _titled(images, rows))
    if clean is not None:
        from distill.plots.curves import psnr_against_time

        for svg, _ in psnr_against_time(rows):
            write_text(out / "psnr_against_time.svg", svg)
    elif INPUT in images:  # otherwise there is nothing to compare
        others = (INPUT, *(name for name in images if name.startswith("student ")))
        estimates = {name: torch.from_numpy(v)[None] for name, v in images.items() if name not in others}
        curves = residual_curves(noisy, estimates, noise_model)
        residual_picture(out / "residuals.png", noisy, estimates, curves)
        write_text(out / "residuals.json", json.dumps(curves))


def _titled(images: dict[str, np.ndarray], rows: list[Row]) -> dict[str, np.ndarray]:
    """The images by titles with their PSNR over all frames."""
    scores = {row["image"]: row.get("psnr_mean") for row in rows}
    return {
        name + (f"\n{scores[name]:.2f} dB" if scores.get(name) is not None else ""): image
        for name, image in images.items()
        if name != "student std"
    }


def evaluate_all(
    runs: Sequence[str | os.PathLike[str]],
    data: Sequence[tuple[Images, Images | None]],
    out: str | Path,
    **options: Any,
) -> list[Row]:
    """Evaluates every run on every (noisy, clean) into a folder, and writes table1.md and table1.csv."""
    check_limits({"out": out})
    out, rows = check_folder(out), []
    data = [(as_stack(noisy, options.get("axes")), clean) for noisy, clean in data]
    names = distinct([Path(noisy.name).stem for noisy, _ in data])
    for run, label in zip(runs, distinct([Path(run).name for run in runs]), strict=True):
        for (noisy, clean), name in zip(data, names, strict=True):
            result = evaluate(run, noisy, clean, out / label / name, **options)
            rows += [row | {"data": name, "run": label} for row in result]
    write_csv(out / "table1.csv", rows)
    if all(clean is not None for _, clean in data):
        write_text(out / "table1.md", table1(rows) + "\n")
    return rows
