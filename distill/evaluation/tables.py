"""Tables of results on screen, as CSV and as Markdown, and the paper's Table 1."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path

from distill.files import whole_file

Row = dict[str, str | float]

HEADINGS = {  # column: (title, digits)
    "psnr_mean": ("PSNR of mean, dB", 2), "psnr_median": ("of median, dB", 2),
    "ssim_mean": ("SSIM of mean", 4), "ssim_median": ("of median", 4),
    "lpips_mean": ("LPIPS of mean", 4), "lpips_median": ("of median", 4),
    "psnr_to_draws": ("PSNR to draws, dB", 2),
    "dispersion": ("dispersion, ideal 2", 2), "kept": ("noise kept, ideal 1", 2),
    "residual_std": ("residual std", 3), "expected_std": ("noise model's", 3),
    "correlation_x": ("correlation along x", 3), "correlation_y": ("along y", 3),
    "nll": ("NLL, nats/px", 4), "expected_nll": ("of its own noise", 4),
    "seconds_per_image": ("s / image", 3), "memory_mb": ("memory, MB", 0),
}  # fmt: skip


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    with whole_file(path) as part, open(part, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)


def format_table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table, aligned for the screen, without empty columns."""
    columns = [key for key in HEADINGS if any(_number(row.get(key), 0) for row in rows)]
    headings = ["image", *(HEADINGS[key][0] for key in columns)]
    lines = [
        [str(row["image"]), *(_number(row.get(key), HEADINGS[key][1]) for key in columns)] for row in rows
    ]
    return markdown([headings, *lines])


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


def _number(value: str | float | None, digits: int) -> str:
    """The formatted number; empty for None and NaN."""
    return "" if value is None or math.isnan(float(value)) else f"{float(value):.{digits}f}"
