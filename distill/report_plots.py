"""Line plots of the report as inline SVG, in the page's own text colour: light or dark."""

import io
import json
import re
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg", force=False)

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

INK = "#123456"  # becomes currentColor
DRAWS, STUDENT = "#3b82f6", "#f59e0b"
STYLE = {
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK,
    "ytick.color": INK, "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 11,
    "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False,
}  # fmt: skip


def psnr_against_time(rows: list[dict[str, Any]]) -> tuple[str, str]:
    """The paper's Figure 1: PSNR of means and medians of draws, and of the student, against time."""
    draws = [row for row in rows if "draw" in row["image"]]
    student = next(row for row in rows if row["image"] == "student")
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
        seconds = [row["seconds_per_image"] for row in draws]
        axis.plot(seconds, [row["psnr_mean"] for row in draws], "o-", color=DRAWS, label="mean of draws")
        axis.plot(seconds, [row["psnr_median"] for row in draws], "s--", color=DRAWS, label="median of draws")
        for row, second in zip(draws, seconds, strict=True):
            axis.annotate(row["image"].split()[0], (second, row["psnr_mean"]), xytext=(-4, 6),
                          textcoords="offset points", color=DRAWS)  # fmt: skip
        at = student["seconds_per_image"], student["psnr_mean"]
        axis.plot(*at, "*", color=STUDENT, markersize=16, label="student, one pass")
        axis.set(xscale="log", xlabel="seconds per image", ylabel="PSNR (dB)")
        axis.legend(loc="lower right")
    return _svg(figure), "PSNR against time per image; the numbers are draws."


def training_curves(metrics: Path) -> tuple[str, str]:
    """Losses of both networks on held-out patches, and how close the student is to the mean of draws."""
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 3, figsize=(12, 3.4), layout="constrained")
        titles = {"sampler_loss": "sampler's loss", "student_loss": "student's loss",
                  "psnr_to_draws": "student to mean of 8 draws, dB"}  # fmt: skip
        for axis, (key, title) in zip(axes, titles.items(), strict=True):
            for name, style in {key: "-", f"val_{key}": "o-"}.items():
                points = [(row["step"], row[name]) for row in rows if name in row]
                if points:
                    label = "held out" if name.startswith("val") or key == "psnr_to_draws" else "training"
                    colour = STUDENT if label == "held out" else DRAWS
                    axis.plot(*zip(*points, strict=True), style, color=colour, markersize=4, label=label)
            axis.set(title=title, xlabel="step")
            axis.legend()
        losses = [row["student_loss"] for row in rows]
        if max(losses) > 20 * sorted(losses)[len(losses) // 2] and min(losses) > 0:
            axes[1].set_yscale("log")
    return _svg(figure), "Training."


def coverage(found: dict[str, Any]) -> tuple[str, str]:
    """Share of the true pixels inside intervals against what the intervals say."""
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(4.5, 4), layout="constrained")
        axis.plot([0, 1], [0, 1], ":", color=INK, linewidth=1)
        axis.plot(found["levels"], found["coverage_before"], "o--", color=DRAWS, label="before calibration")
        axis.plot(found["levels"], found["coverage_after"], "o-", color=STUDENT, label="after")
        axis.set(xlabel="wanted", ylabel="inside", xlim=(0, 1), ylim=(0, 1), aspect="equal")
        axis.legend()
    return _svg(figure), f"Coverage of intervals; calibrated at {found['level']:.0%}."


def _svg(figure: Figure) -> str:
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    plt.close(figure)
    svg = file.getvalue()
    return re.sub(r"(?s)^.*?(<svg)", r"\1", svg).replace(INK, "currentColor")
