"""Minutes of one core until the student is as good as its alternatives: the board.

    DISTILL_TEST_DATA=... python benchmarks/time_to_quality.py             5 minutes for each data set
    DISTILL_TEST_DATA=... python benchmarks/time_to_quality.py --only specimen --minutes 10 --board FILE
    DISTILL_TEST_DATA=... python benchmarks/time_to_quality.py --published   the published code's 10 minutes

It measures a training of `distill train --budget`: PSNR of the student that it would keep at that moment,
against CPU time. Its learning rate is that of a training of so many minutes,
so a shorter one would be better at the same time. Writes runs/time_to_quality/curves.csv and curves.png, and
prints rows for docs/time-to-quality.md. Data: the built-in specimen; FOV 1's noisy frames, with FOV 19 never
seen; widefield, with its noise fitted to its four frames. --published: HDN(), UNet(shared_convs=True) and
PUBLISHED.
"""

import argparse
import copy
import csv
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cached_confocal import DATA
from matplotlib.figure import Figure
from quality import Case, built_in, confocal

from distill import DirectDenoiser, psnr, read, train
from distill.hardware import keep_freed_memory
from distill.images.sources import as_stack
from distill.prediction.pretrained import pretrained_denoiser
from distill.runs.tensors import load
from distill.training.engine import PUBLISHED
from losses import L2
from samplers import HDN, CorrelatedNoise, GaussianNoise, StabilizedSampler
from students import StabilizedUNet, UNet

OUT = Path("runs/time_to_quality")
# quality.py rivals and structured.py: BM3D (exact inverse; for widefield, by the noise's power spectrum).
BM3D = {"fov1": 38.22, "fov19": 41.21, "specimen": 29.57, "g": 31.11, "r": 32.92}


def widefield(kind: str) -> tuple[np.ndarray, list[Case], CorrelatedNoise]:
    """FMD's four frames of one field, and the noise that they differ by."""
    noisy, mean = (read(DATA / f"widefield_bpae_{kind}_{name}.tif").frames for name in ("noisy", "mean50"))
    frames = torch.from_numpy(np.array(noisy, "f4"))
    level = frames.mean(0, keepdim=True)
    noise = CorrelatedNoise.from_noise((frames - level) * (len(frames) / (len(frames) - 1)) ** 0.5, level)
    case = (kind, frames[2:3], torch.from_numpy(np.array(mean[0], "f4"))[None], noise)
    return np.array(noisy)[:, 0], [case], noise


class Watch:
    """Keeps the students of a training that is under way, and looks at them when it is over.

    The budget counts what it does meanwhile. on_log: for `train`.
    """

    def __init__(self, out: Path) -> None:
        self.out, self.started, self.new = out, time.process_time(), False
        self.kept: list[tuple[float, dict[str, torch.Tensor]]] = []  # (minutes, weights)

    def on_log(self, row: dict[str, Any]) -> None:
        if self.new:  # the row before came with a checkpoint, which is written by now
            tensors, _ = load(self.out / "checkpoint.safetensors")
            start = "best." if any(k.startswith("best.") for k in tensors) else "average.module."
            own = {k.removeprefix(start): v.clone() for k, v in tensors.items() if k.startswith(start)}
            self.kept.append(((time.process_time() - self.started) / 60, own))
        self.new = "val_student_loss" in row

    def curve(self, denoiser: DirectDenoiser, cases: list[Case]) -> list[tuple[float, dict[str, float]]]:
        """(minutes, score) of each."""
        found = []
        for minutes, weights in self.kept:
            denoiser.load_state_dict(weights)
            found.append((minutes, score(denoiser, cases)))
        return found


@torch.no_grad()
def score(denoiser: DirectDenoiser, cases: list[Case]) -> dict[str, float]:
    """The mean PSNR of the cases of each name."""
    found: dict[str, list[float]] = {}
    for name, noisy, clean, _ in cases:
        found.setdefault(name, []).append(psnr(denoiser.eval()(noisy), clean))
    return {name: float(np.mean(values)) for name, values in found.items()}


def ours(
    images: np.ndarray, cases: list[Case], noise: GaussianNoise | None, minutes: float
) -> list[tuple[float, dict[str, float]]]:
    """(minutes, score) before, during and after a training."""
    out = Path(tempfile.mkdtemp())
    torch.manual_seed(0)
    first: dict[str, float] = {}
    for case in cases:
        first |= score(pretrained_denoiser(as_stack(case[1].numpy()[0, 0])), [case])
    watch = Watch(out)
    run = train(images, StabilizedSampler(noise), StabilizedUNet(), L2(), out, budget=f"{minutes}min",
                validate_every=50, on_log=watch.on_log)  # fmt: skip
    last = (time.process_time() - watch.started) / 60, score(run.denoiser, cases)
    return [(0.0, first), *watch.curve(copy.deepcopy(run.denoiser), cases), last]


def published(images: np.ndarray, cases: list[Case], noise: GaussianNoise | None) -> dict[str, float]:
    torch.manual_seed(0)
    settings: dict[str, Any] = PUBLISHED | dict(budget="10min", validate_every=10**6)
    del settings["refine_steps"]
    run = train(images, HDN(noise), UNet(shared_convs=True), L2(), tempfile.mkdtemp(), **settings)
    return score(run.denoiser, cases)


def minutes_to(curve: list[tuple[float, float]], wanted: float) -> str:
    """From where on it is never below again; between looks by a line."""
    if curve[-1][1] < wanted:
        return "not reached"
    last = max((i for i, (_, value) in enumerate(curve) if value < wanted), default=-1)
    if last < 0:
        return "0"
    (t0, v0), (t1, v1) = curve[last : last + 2]
    return f"{t0 + (t1 - t0) * (wanted - v0) / (v1 - v0):.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=["specimen", "confocal", "g", "r"])
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--published", action="store_true")
    parser.add_argument("--board", type=Path, help="Markdown file to append the rows to")
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    OUT.mkdir(parents=True, exist_ok=True)
    commit = subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], text=True).strip()
    figure = Figure(figsize=(8, 4), layout="constrained")
    axis, rows = figure.subplots(), []
    for what in options.only or ["specimen", "confocal", "g", "r"]:
        noise = None
        if what in "gr":
            images, cases, noise = widefield(what)
        else:
            images, cases = confocal() if what == "confocal" else built_in()
            noise = cases[0][3] if what == "specimen" else None
        if options.published:
            print({k: round(v, 2) for k, v in published(images, cases, noise).items()}, flush=True)
            continue
        looks = ours(images, cases, noise, options.minutes)
        for name, rival in BM3D.items():
            if name not in looks[0][1]:
                continue
            curve = [(t, scores[name]) for t, scores in looks]
            final = curve[-1][1]
            cells = [commit, name, f"{curve[0][1]:.2f}", minutes_to(curve, rival)]
            taken = f"{final:.2f} in {curve[-1][0]:.1f} of {options.minutes:g}"
            cells += [minutes_to(curve, final - 0.05), taken]
            rows.append("| " + " | ".join(cells) + " |")
            print(rows[-1], flush=True)
            axis.plot(*zip(*((t, value - rival) for t, value in curve), strict=True), ".-", label=name)
            with open(OUT / "curves.csv", "a", newline="") as file:
                csv.writer(file).writerows([what, name, f"{t:.3f}", f"{v:.3f}"] for t, v in curve)
    if options.published:
        return
    axis.axhline(0, color="grey", linewidth=0.8)
    axis.set(xlabel="minutes of one core", ylabel="PSNR above BM3D, dB")
    axis.legend()
    figure.savefig(OUT / "curves.png", dpi=100)
    if options.board:
        with open(options.board, "a", encoding="utf-8") as file:
            file.write("\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
