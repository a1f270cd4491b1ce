"""One self-contained HTML page of one or several runs: the paper's Table 1, Figures 1 and 3, curves."""

import csv
import json
import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import torch
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from distill.errors import UserError
from distill.evaluation.checks import advice
from distill.evaluation.compare import TRUTH
from distill.evaluation.tables import CAPTION1, HEADINGS, Row, distinct, table1_cells
from distill.evaluation.verdict import next_step, read_table, verdict
from distill.evaluation.worth import worth
from distill.files import check_folder, write_text
from distill.images.stack import Stack
from distill.limits import check_limits
from distill.plots import curves
from distill.reporting.embedded import data_uri, pictures
from distill.runs import tensors
from distill.runs.checkpoint import CHECKPOINT_HEADER
from distill.runs.describe import ROLES, check_links, describe_run, is_finished
from samplers.noise import npz

PICTURE_BYTES = 2_000_000_000  # of one frame: the input, its averages of draws, the student's maps
RESUME = "run its `distill train` again, which goes on where it was stopped"
PASS = "pass the folder that `distill train` or `distill denoise` wrote"
MADE_HERE = '<meta name="generator" content="distill report">'


def report(
    runs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    out: str | Path | None = None,
    *,
    overwrite: bool = False,
) -> Path:
    """Writes the page -> its path; it needs no network and no other file.

    Args:
        runs: finished runs or their folders, also those of a sampler without a student. What `evaluate` left
            in them, or in folders within, is shown, and so is what `calibrate` did.
        out: HTML file to write. Default: report.html in the first run's folder.
        overwrite: replace `out` if it exists and is no earlier report.
    """
    check_limits(locals())
    runs = [Path(run) for run in ([runs] if isinstance(runs, str | os.PathLike) else runs)]
    for run in runs:
        if not is_finished(run):
            is_stopped = (run / "checkpoint.safetensors").exists()
            raise UserError(f"{run}: not a finished run; {RESUME if is_stopped else PASS}")
        check_links(run)
    out = runs[0] / "report.html" if out is None else Path(out)
    _check(out, overwrite)
    check_folder(out.parent, 1e6 + sum(table.stat().st_size for run in runs for table in run.rglob("*.npz")))
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


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """What a run's folder holds may be torn, or not belong together."""
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError, LookupError, TypeError, BadZipFile, csv.Error) as error:
        raise UserError(
            f"{path}: damaged or incomplete ({type(error).__name__}: {error}); delete it, or make it again"
        ) from error


def _table1(runs: list[Path]) -> list[list[str]]:
    """The paper's Table 1 of all runs, headings first."""
    rows: list[Row] = []
    for run, label in zip(runs, distinct([run.name for run in runs]), strict=True):
        tables = [_rows(table) for table in _tables(run)]
        tables = [table for table in tables if table and table[0].get("psnr_mean") is not None]
        names = distinct([str(table[0]["data"]) for table in tables])
        for name, table in zip(names, tables, strict=True):
            rows += [row | {"data": name, "run": label} for row in table]
    return [[", ".join(line[:2]), *line[2:]] for line in table1_cells(rows)]


def _tables(run: Path) -> list[Path]:
    """What `evaluate` left in the run's folder or within, except in other runs there; oldest first."""
    others = {path.parent for role in ROLES for path in run.rglob(f"*/{role}.safetensors")}
    tables = sorted(run.rglob("evaluation.csv"), key=lambda table: table.stat().st_mtime)
    return [table for table in tables if not any(table.is_relative_to(other) for other in others)]


def _rows(table: Path) -> list[Row]:
    with _damage_named(table):
        return read_table(table)


def _run(run: Path) -> dict[str, Any]:
    metrics, calibration = run / "metrics.jsonl", run / "calibration.json"
    plots = curves.training_curves(metrics) if metrics.exists() else []
    if calibration.exists():
        with _damage_named(calibration):
            plots.append(curves.coverage(json.loads(calibration.read_text(encoding="utf-8"))))
    checkpoint = run / "checkpoint.safetensors"  # may have been deleted to save space
    settings = tensors.load(checkpoint, CHECKPOINT_HEADER)[1]["settings"] if checkpoint.exists() else {}
    cost, evaluated = run / "cost.txt", []
    for table in _tables(run):
        with _damage_named(table):
            evaluated.append(_evaluated(table))
    return {
        "name": run.name,
        "evaluated": evaluated,
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
        "verdict": verdict(rows),
        "next": next_step(rows),
        "table": _cells(rows),
        "advice": worth(rows) + (advice(_rows(checks)) if checks.exists() else []),
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
