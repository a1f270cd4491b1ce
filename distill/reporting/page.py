"""One self-contained HTML page of one or several runs: the paper's Table 1, Figures 1 and 3, curves."""

import base64
import csv
import html
import io
import json
import os
import platform
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from string import Template

import numpy as np
import torch

from distill.errors import UserError
from distill.evaluation.compare import TRUTH
from distill.evaluation.tables import CAPTION1, HEADINGS, Row, distinct, table1_cells
from distill.images.stack import Stack
from distill.plots import curves
from distill.plots.pictures import busiest
from distill.runs import tensors
from distill.runs.describe import describe_run

SHOWN, ZOOMED = 256, 64  # px of the first frame: pages stay below a few MB


def report(
    runs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], out: str | Path | None = None
) -> Path:
    """Writes the page -> its path; it needs no network and no other file.

    Args:
        runs: finished runs or their folders. What `evaluate` left in them, or in folders within, is shown,
            and so is what `calibrate` did.
        out: HTML file to write; report.html in the first run's folder unless told.
    """
    runs = [Path(run) for run in ([runs] if isinstance(runs, str | os.PathLike) else runs)]
    for run in runs:
        if not (run / "student.safetensors").exists():
            raise UserError(f"{run}: not a finished run; pass the folder that `distill train` wrote")
    out = Path(out or runs[0] / "report.html")
    template = Template(Path(__file__).with_name("report.html").read_text())
    page = template.substitute(
        title=_text("Distilled: " + ", ".join(run.name for run in runs)),
        subtitle=_text(f"posterior-distill {version('posterior-distill')}, torch {torch.__version__}, "
                       f"Python {platform.python_version()} on {platform.machine()}"),
        body="\n".join([*_summary(runs), *(part for run in runs for part in _sections(run))]),
    )  # fmt: skip
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page)
    return out


def _summary(runs: list[Path]) -> Iterator[str]:
    """The paper's Table 1, where there is more than one line of it."""
    rows = []
    for run, label in zip(runs, distinct([run.name for run in runs]), strict=True):
        tables = [_rows(table) for table in _tables(run)]
        tables = [table for table in tables if table[0].get("psnr_mean") is not None]
        names = distinct([str(table[0]["data"]) for table in tables])
        for name, table in zip(names, tables, strict=True):
            rows += [row | {"data": name, "run": label} for row in table]
    lines = table1_cells(rows)
    if len(lines) > 2:
        yield f"<h2>Table 1</h2><p>{CAPTION1}.</p>{_grid([[', '.join(line[:2]), *line[2:]] for line in lines])}"


def _tables(run: Path) -> list[Path]:
    """What `evaluate` left in the run's folder or within, except in other runs there; oldest first."""
    others = [student.parent for student in run.rglob("*/student.safetensors")]
    found = sorted(run.rglob("evaluation.csv"), key=lambda table: table.stat().st_mtime)
    return [table for table in found if not any(table.is_relative_to(other) for other in others)]


def _rows(table: Path) -> list[Row]:
    with open(table) as file:
        return [{k: _value(v) for k, v in row.items()} for row in csv.DictReader(file)]


def _sections(run: Path) -> Iterator[str]:
    yield f"<h2>{_text(run.name)}</h2>"
    for table in _tables(run):
        rows = _rows(table)
        data = str(rows[0]["data"])
        yield f"<h3>{'Images given as an array' if data == Stack.name else _text(data)}</h3>"
        yield _table(rows)
        with np.load(table.with_suffix(".npz")) as stored:
            images = dict(stored)
        plots, residuals = [], table.with_name("residuals.png")
        if TRUTH in images:
            plots += curves.psnr_against_time(rows)
        elif residuals.exists():
            plots.append((f'<img src="{_embedded(residuals.read_bytes())}" alt="residuals">', RESIDUALS))
        yield _figures(plots)
        yield _pictures(images, rows)
    plots = curves.training_curves(run / "metrics.jsonl")
    if (run / "calibration.json").exists():
        plots.append(curves.coverage(json.loads((run / "calibration.json").read_text())))
    yield f"<h3>Training</h3>{_figures(plots)}"
    if (run / "cost.txt").exists():
        yield f"<p class=lines>{_text((run / 'cost.txt').read_text())}</p>"
    settings = tensors.load(run / "checkpoint.safetensors")[1]["settings"]
    lines = [f"{key}: {value}" for key, value in settings.items() if key not in ("data", "networks")]
    yield f"<pre>{_text(describe_run(run))}\n\n{_text(chr(10).join(lines))}</pre>"


RESIDUALS = (
    "Residuals, noisy - denoised: structure in the picture, or a correlation that the noise itself has "
    "not, was removed with the noise."
)


def _table(rows: list[Row]) -> str:
    shown = [key for key in HEADINGS if any(isinstance(row.get(key), float) for row in rows)]
    lines = [["", *(HEADINGS[key][0] for key in shown)]]
    for row in rows:
        numbers = [f"{row[k]:.{HEADINGS[k][1]}f}" if isinstance(row[k], float) else "" for k in shown]
        lines.append([str(row["image"]), *numbers])
    return _grid(lines)


def _grid(lines: list[list[str]]) -> str:
    """Cells, headings first -> an HTML table."""
    head, *others = lines
    html_rows = [f"<tr>{''.join(f'<th>{_text(cell)}</th>' for cell in head)}</tr>"]
    for line in others:
        cells = "".join(f"<td>{_text(cell)}</td>" for cell in line)
        html_rows.append(f"<tr{' class=student' * (line[0] == 'student')}>{cells}</tr>")
    return f'<div class="wide"><table>{"".join(html_rows)}</table></div>'


def _figures(plots: list[tuple[str, str]]) -> str:
    figures = [f"<figure><figcaption>{_text(caption)}</figcaption>{plot}</figure>" for plot, caption in plots]
    return f'<div class="plots">{"".join(figures)}</div>'


def _pictures(images: dict[str, np.ndarray], rows: list[Row]) -> str:
    """Every image of the first frame on one grey scale: the part that varies most, a zoom into it,
    and its error (blue below, red above the truth), on one scale too."""
    reference = images.get(TRUTH, images["student"])
    images = {name: image for name, image in images.items() if name != "student std"}
    scores = {row["image"]: row.get("psnr_mean") for row in rows}
    y, x = busiest(reference, min(SHOWN, *reference.shape))
    cut = (slice(y, y + SHOWN), slice(x, x + SHOWN))
    low, high = np.percentile(reference[cut], (0.1, 99.95))
    size = min(ZOOMED, *reference[cut].shape)
    y, x = busiest(reference[cut], size)
    reach = 3 * float(np.std(images["student"] - reference)) if TRUTH in images else 0.0
    figures = []
    for name, image in images.items():
        shown = image[cut]
        parts = [_png(shown, low, high), _png(shown[y : y + size, x : x + size], low, high)]
        if reach and name != TRUTH:
            parts.append(_png(shown - reference[cut], -reach, reach, "RdBu_r"))
        pictures = "".join(f'<img src="{part}" alt="{_text(name)}">' for part in parts)
        score = f"<br>{scores[name]:.2f} dB" if isinstance(scores.get(name), float) and name != TRUTH else ""
        figures.append(f"<figure><figcaption>{_text(name)}{score}</figcaption>{pictures}</figure>")
    caption = f"One grey scale, {low:.4g} to {high:.4g} counts, in every picture, with a zoom" + (
        f" and the error, blue to red for -{reach:.3g} to {reach:.3g} counts." if reach else "."
    )
    return f'<p>{caption}</p><div class="images" style="--n:{len(figures)}">{"".join(figures)}</div>'


def _png(image: np.ndarray, low: float, high: float, colours: str = "gray") -> str:
    """One byte for each pixel: a page holds many."""
    from matplotlib import colormaps
    from PIL import Image

    span = max(high - low, 1e-12)  # of a flat image
    levels = np.clip(256 * (image - low) / span, 0, 255).astype(np.uint8)
    picture = Image.fromarray(levels)
    picture.putpalette(colormaps[colours](np.arange(256), bytes=True)[:, :3].tobytes())
    file = io.BytesIO()
    picture.save(file, "PNG")
    return _embedded(file.getvalue())


def _embedded(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _value(text: str) -> str | float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return text


def _text(text: str) -> str:
    return html.escape(text)
