"""One self-contained HTML page of one or several runs: the paper's Table 1, Figures 1 and 3, curves."""

import csv
import json
import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from distill.errors import UserError
from distill.evaluation.checks import advice
from distill.evaluation.compare import TRUTH
from distill.evaluation.tables import CAPTION1, HEADINGS, Row, distinct, table1_cells
from distill.files import write_text
from distill.images.stack import Stack
from distill.plots import curves
from distill.reporting.embedded import data_uri, pictures
from distill.runs import tensors
from distill.runs.checkpoint import CHECKPOINT_HEADER
from distill.runs.describe import check_links, describe_run
from samplers.noise import npz

PICTURE_BYTES = 2_000_000_000  # of one frame: the input, its averages of draws, the student's maps
MADE_HERE = '<meta name="generator" content="distill report">'


def report(
    runs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    out: str | Path | None = None,
    *,
    overwrite: bool = False,
) -> Path:
    """Writes the page -> its path; it needs no network and no other file.

    Args:
        runs: finished runs or their folders. What `evaluate` left in them, or in folders within, is shown,
            and so is what `calibrate` did.
        out: HTML file to write. Default: report.html in the first run's folder.
        overwrite: replace `out` if it exists and is no earlier report.
    """
    runs = [Path(run) for run in ([runs] if isinstance(runs, str | os.PathLike) else runs)]
    for run in runs:
        if not (run / "student.safetensors").exists():
            raise UserError(f"{run}: not a finished run; pass the folder that `distill train` wrote")
        check_links(run)
    out = Path(out or runs[0] / "report.html")
    _check(out, overwrite)
    source = Path(__file__).with_name("report.html").read_text(encoding="utf-8")
    environment = Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    page = environment.from_string(source).render(
        title="Distilled: " + ", ".join(run.name for run in runs),
        subtitle=f"posterior-distill {version('posterior-distill')}, torch {torch.__version__}, "
                 f"Python {platform.python_version()} on {platform.machine()}",
        caption1=CAPTION1,
        table1=_table1(runs),
        runs=[_run(run) for run in runs],
    )  # fmt: skip
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, page)
    return out


def _check(out: Path, overwrite: bool) -> None:
    if out.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"{out}: not an HTML file; pass a name that ends in .html")
    if out.is_dir():
        raise UserError(f"{out}: is a folder; pass the name of a file")
    if out.exists() and not overwrite and MADE_HERE not in out.read_text(encoding="utf-8", errors="replace"):
        raise UserError(f"{out}: exists, and is no earlier report; pass another name, or overwrite")


def _table1(runs: list[Path]) -> list[list[str]]:
    """The paper's Table 1 of all runs, headings first."""
    rows = []
    for run, label in zip(runs, distinct([run.name for run in runs]), strict=True):
        tables = [_rows(table) for table in _tables(run)]
        tables = [table for table in tables if table[0].get("psnr_mean") is not None]
        names = distinct([str(table[0]["data"]) for table in tables])
        for name, table in zip(names, tables, strict=True):
            rows += [row | {"data": name, "run": label} for row in table]
    return [[", ".join(line[:2]), *line[2:]] for line in table1_cells(rows)]


def _tables(run: Path) -> list[Path]:
    """What `evaluate` left in the run's folder or within, except in other runs there; oldest first."""
    others = [student.parent for student in run.rglob("*/student.safetensors")]
    found = sorted(run.rglob("evaluation.csv"), key=lambda table: table.stat().st_mtime)
    return [table for table in found if not any(table.is_relative_to(other) for other in others)]


def _rows(table: Path) -> list[Row]:
    with open(table, encoding="utf-8") as file:
        return [{k: _value(v) for k, v in row.items() if v} for row in csv.DictReader(file)]


def _run(run: Path) -> dict[str, Any]:
    plots = curves.training_curves(run / "metrics.jsonl")
    if (run / "calibration.json").exists():
        plots.append(curves.coverage(json.loads((run / "calibration.json").read_text(encoding="utf-8"))))
    settings = tensors.load(run / "checkpoint.safetensors", CHECKPOINT_HEADER)[1]["settings"]
    cost = run / "cost.txt"
    return {
        "name": run.name,
        "evaluated": [_evaluated(table) for table in _tables(run)],
        "plots": _inline(plots),
        "cost": cost.read_text(encoding="utf-8") if cost.exists() else "",
        "description": describe_run(run),
        "settings": {key: value for key, value in settings.items() if key not in ("data", "networks")},
    }


def _evaluated(table: Path) -> dict[str, Any]:
    """What `evaluate` left beside this table."""
    rows, residuals = _rows(table), table.with_name("residuals.png")
    checks = table.with_name("checks.csv")
    data = str(rows[0]["data"])
    try:
        images = npz.read(table.with_suffix(".npz"), most_bytes=PICTURE_BYTES)
    except ValueError as error:
        raise UserError(f"{error}; evaluate again") from error
    scores = {str(row["image"]): float(row["psnr_mean"]) for row in rows if "psnr_mean" in row}
    has_truth = TRUTH in images
    return {
        "title": "Images given as an array" if data == Stack.name else data,
        "table": _cells(rows),
        "advice": advice(_rows(checks)) if checks.exists() else [],
        "plots": _inline(curves.psnr_against_time(rows)) if has_truth else [],
        "residuals": data_uri(residuals.read_bytes()) if residuals.exists() and not has_truth else None,
        "pictures": pictures(images, scores),
    }


def _inline(plots: list[tuple[str, str]]) -> list[tuple[Markup, str]]:
    return [(Markup(svg), caption) for svg, caption in plots]  # matplotlib has escaped the texts in it


def _cells(rows: list[Row]) -> list[list[str]]:
    """Headings, and a line for each row; columns without a number are left out."""
    shown = [key for key in HEADINGS if any(isinstance(row.get(key), float) for row in rows)]
    lines = [["", *(HEADINGS[key][0] for key in shown)]]
    for row in rows:
        numbers = [f"{row[k]:.{HEADINGS[k][1]}f}" if isinstance(row.get(k), float) else "" for k in shown]
        lines.append([str(row["image"]), *numbers])
    return lines


def _value(text: str) -> str | float:
    try:
        return float(text)
    except ValueError:
        return text
