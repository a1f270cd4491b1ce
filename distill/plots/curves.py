"""Line plots of the report as inline SVG, in the text colour of the page, light or dark."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.files import read_json_lines

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.typing import RcKeyType  # newer than our lower bound

INK = "#123456"  # becomes currentColor
DRAWS, STUDENT = "#3b82f6", "#f59e0b"
STYLE: "dict[RcKeyType, Any]" = {
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK,
    "ytick.color": INK, "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 11,
    "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False,
}  # fmt: skip


def psnr_against_time(rows: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """The paper's Figure 1: PSNR of means and medians of draws, and of the student, against time."""
    from matplotlib.ticker import LogLocator, NullFormatter

    draws = [row for row in rows if "draw" in row["image"]]
    if not draws:
        return []
    students = [row for row in rows if row["image"] == "student"]  # none in a run of a sampler alone
    with _figures((6, 4)) as (figure,):
        axis = figure.subplots()
        seconds = [row["seconds_per_image"] for row in draws]
        axis.plot(seconds, [row["psnr_mean"] for row in draws], "o-", color=DRAWS, label="mean of draws")
        axis.plot(seconds, [row["psnr_median"] for row in draws], "s--", color=DRAWS, label="median of draws")
        for row, second in zip(draws, seconds, strict=True):
            axis.annotate(row["image"].split()[0], (second, row["psnr_mean"]), xytext=(-4, 6),
                          textcoords="offset points", color=DRAWS)  # fmt: skip
        for row in students:
            at = row["seconds_per_image"], row["psnr_mean"]
            axis.plot(*at, "*", color=STUDENT, markersize=16, label="student, one pass")
        axis.set(xscale="log", xlabel="seconds per image", ylabel="PSNR (dB)")
        axis.margins(0.12)
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.legend()
    return [(_svg(figure), "PSNR against seconds per image; numbers of draws beside their means.")]


def training_curves(metrics: Path) -> list[tuple[str, str]]:
    """Losses of both networks, and the student's PSNR to the mean of draws on held-out patches."""
    rows = [row for row in read_json_lines(metrics) if "step" in row]
    captions = {"sampler_loss": "Sampler's loss.", "student_loss": "Student's loss.",
                "psnr_to_draws": "Student against the mean of draws, dB."}  # fmt: skip
    plots = []
    for key, caption in captions.items():
        curves = {"training": (key, "-", DRAWS), "held out": (f"val_{key}", "o-", STUDENT)}
        if key == "psnr_to_draws":
            curves = {"held out": (key, "o-", STUDENT)}
        with _figures((6, 3.4)) as (figure,):
            axis = figure.subplots()
            for label, (name, style, colour) in curves.items():
                points = [(row["step"], row[name]) for row in rows if name in row]
                if len(points) > 1:  # one point is no curve
                    axis.plot(*zip(*points, strict=True), style, color=colour, markersize=4, label=label)
            axis.set(xlabel="step")
            if axis.lines:
                axis.legend()
                plots.append((_svg(figure), caption))
    return plots


def residuals(curves: dict[str, dict[str, list[float]]]) -> list[tuple[str, str]]:
    """The curves of `residual_curves` of the most draws and of the student."""
    shown = [name for name in curves if "draw" in name][-1:] + [name for name in curves if name == "student"]
    colours = {name: STUDENT if name == "student" else DRAWS for name in shown}
    with _figures((6, 3.4), (6, 3.4)) as (figure, other):
        correlation, against = figure.subplots(), other.subplots()
        for name, colour in colours.items():
            own = curves[name]
            for direction, style in (("along x", "o-"), ("along y", "s--")):
                label = f"{name}, {direction}"
                correlation.plot(own[direction], style, color=colour, markersize=4, label=label)
            against.plot(own["signal"], own["std"], color=colour, label=f"std, {name}")
            against.plot(own["signal"], own["mean"], ":", color=colour, label=f"mean, {name}")
            if "expected" in own and name == shown[-1]:
                against.plot(own["signal"], own["expected"], "--", color=INK, label="std of the noise model")
        for axis in (correlation, against):
            axis.axhline(0, color=INK, linewidth=0.5)
            axis.legend(fontsize=9)
        correlation.set(xlabel="pixels apart", ylabel="correlation")
        against.set(xlabel="signal (counts)", ylabel="residual (counts)")
    captions = (
        "Correlation of the residual's pixels. That of independent noise is 0 from the first pixel on.",
        "Residual by brightness. Its mean should be 0, and its std that of the noise.",
    )
    return (
        [(_svg(each), caption) for each, caption in zip((figure, other), captions, strict=True)]
        if shown
        else []
    )


def coverage(result: dict[str, Any]) -> tuple[str, str]:
    """Fraction of the true pixels in the intervals, against the level that the intervals state."""
    with _figures((4.5, 4)) as (figure,):
        axis = figure.subplots()
        axis.plot([0, 1], [0, 1], ":", color=INK, linewidth=1)
        axis.plot(result["levels"], result["coverage_before"], "o--", color=DRAWS, label="before calibration")
        axis.plot(result["levels"], result["coverage_after"], "o-", color=STUDENT, label="after")
        axis.set(xlabel="wanted", ylabel="inside", xlim=(0, 1), ylim=(0, 1), aspect="equal")
        axis.legend()
    return _svg(figure), f"Coverage of intervals; calibrated at {result['level']:.0%}."


@contextmanager
def _figures(*sizes: tuple[float, float]) -> "Iterator[list[Figure]]":
    from matplotlib import rc_context  # here, because it takes a second that most commands do not need
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        yield [Figure(figsize=size, layout="constrained") for size in sizes]


def _svg(figure: "Figure") -> str:
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = file.getvalue()
    return re.sub(r"(?s)^.*?(<svg)", r"\1", svg).replace(INK, "currentColor")
