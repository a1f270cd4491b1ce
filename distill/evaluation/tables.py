"""Tables of results on screen, as CSV and as Markdown, and the paper's Table 1."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path

from distill.files import whole_file

Row = dict[str, str | float]

HEADINGS = {  # column: (title, digits behind the point; None for counts, which have any size)
    "psnr_mean": ("PSNR of mean, dB", 2), "psnr_median": ("PSNR of median, dB", 2),
    "ssim_mean": ("SSIM of mean", 4), "ssim_median": ("SSIM of median", 4),
    "lpips_mean": ("LPIPS of mean", 4), "lpips_median": ("LPIPS of median", 4),
    "psnr_to_draws": ("PSNR to draws, dB", 2),
    "dispersion": ("dispersion, ideal 2", 2), "kept": ("noise kept, ideal 1", 2),
    "residual_std": ("residual std", None), "expected_std": ("expected std", None),
    "correlation_x": ("correlation along x", 3), "correlation_y": ("correlation along y", 3),
    "nll": ("NLL", 4), "expected_nll": ("expected NLL", 4),
    "seconds_per_image": ("s / image", 3), "memory_mb": ("memory, MB", 0),
}  # fmt: skip
MEANINGS = {  # column: what it tells a reader without a manual
    "psnr_mean": "PSNR: closeness to the ground truth in decibels, higher is better; for draws, that of the "
    "mean or median of so many.",
    "ssim_mean": "SSIM: structural similarity to the ground truth, at most 1.",
    "lpips_mean": "LPIPS: difference in appearance from the ground truth, 0 at best.",
    "psnr_to_draws": "PSNR to draws: closeness to the mean of the most draws.",
    "dispersion": "Dispersion: 2 if the draws differ as much as they should; less if they are too sure.",
    "kept": "Noise kept: 1 is right; above it noise is left, below it detail is smoothed away.",
    "residual_std": "Residual: the noisy image minus the denoised one.",
    "expected_std": "Expected: the value for noise of the noise model alone.",
    "correlation_x": "Correlation: that of neighbouring pixels of the residual, 0 for independent noise.",
    "nll": "NLL: negative log-likelihood of the residual under the noise model, in nats per pixel.",
}


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    with whole_file(path) as part, open(part, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)


def format_table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table, aligned for the screen, without empty rows and columns."""
    return markdown(cells(rows))


def cells(rows: Sequence[Row]) -> list[list[str]]:
    """Cells of a table of results, headings first, without empty rows and columns."""
    keys = columns(rows)
    lines = [[str(row["image"]), *(_number(row.get(key), HEADINGS[key][1]) for key in keys)] for row in rows]
    return [["image", *(HEADINGS[key][0] for key in keys)], *(line for line in lines if any(line[1:]))]


def columns(rows: Sequence[Row]) -> list[str]:
    """The columns of HEADINGS in which some row has a number."""
    return [key for key in HEADINGS if any(_number(row.get(key), 0) for row in rows)]


def meanings(rows: Sequence[Row]) -> list[str]:
    """Sentences on the columns of a table of these rows."""
    return [MEANINGS[key] for key in columns(rows) if key in MEANINGS]


def in_counts(value: float, digits: int = 3) -> str:
    """A number with so many significant digits and without an exponent: 0.0123, 4.50, 30,800."""
    if not value or not math.isfinite(value):
        return f"{value:g}"
    rounded = float(f"{value:.{digits}g}")
    return f"{rounded:,.{max(0, digits - 1 - math.floor(math.log10(abs(rounded))))}f}"


CAPTION1 = "PSNR in dB; for draws, of their mean (and median)"


def table1(rows: Sequence[Row]) -> str:
    """The paper's Table 1 as Markdown."""
    return f"{CAPTION1}\n\n{markdown(table1_cells(rows))}"


def table1_cells(rows: Sequence[Row]) -> list[list[str]]:
    """The headings of Table 1, and a line for each data set and run.

    A line contains the PSNR in dB of the mean (and of the median) of n draws, and of the student. Rows need
    `data` and `run` beside their scores.
    """
    images = list(dict.fromkeys(str(row["image"]) for row in rows))
    images.sort(key=lambda name: name.startswith("student"))  # the sort is stable: draws come before
    lines = [["data", "run", *images]]
    for data, run in dict.fromkeys((row["data"], row["run"]) for row in rows):
        own = {row["image"]: row for row in rows if (row["data"], row["run"]) == (data, run)}
        lines.append([str(data), str(run), *(_score(own.get(image)) for image in images)])
    return lines


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table of cells, headings first; all columns but the first are aligned to the right."""
    widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(lines[0]))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    aligned = []
    for first, *others in (lines[0], rule, *lines[1:]):
        cells = [first.ljust(widths[0]), *map(str.rjust, others, widths[1:])]
        aligned.append(f"| {' | '.join(cells)} |")
    return "\n".join(aligned)


def distinct(names: Sequence[str]) -> list[str]:
    """Appends a number to repeated names: a, b, a_2."""
    return [
        name if name not in names[:i] else f"{name}_{names[: i + 1].count(name)}"
        for i, name in enumerate(names)
    ]


def _score(row: Row | None) -> str:
    if row is None:
        return ""
    mean, median = row["psnr_mean"], row["psnr_median"]
    return f"{mean:.2f}" if mean == median else f"{mean:.2f} ({median:.2f})"


def _number(value: str | float | None, digits: int | None) -> str:
    """The formatted number; empty for None and NaN."""
    if value is None or math.isnan(float(value)):
        return ""
    return in_counts(float(value), 4) if digits is None else f"{float(value):.{digits}f}"
