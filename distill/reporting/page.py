"""Writes a self-contained HTML page about one or several runs: tables, pictures, curves, settings."""

import csv
import json
import os
import platform
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import torch
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

from distill.errors import UserError
from distill.evaluation.checks import advice
from distill.evaluation.compare import TRUTH
from distill.evaluation.tables import CAPTION1, Row, cells, distinct, meanings, table1_cells
from distill.evaluation.verdict import next_step, read_table, verdict
from distill.evaluation.worth import worth
from distill.files import check_folder, write_text
from distill.images.stack import Stack
from distill.limits import check_limits
from distill.plots import curves
from distill.plots.residuals import Curves
from distill.reporting.embedded import pictures
from distill.runs import tensors
from distill.runs.checkpoint import CHECKPOINT_HEADER
from distill.runs.describe import ROLES, check_links, describe_run, is_finished
from samplers.noise import npz

PICTURE_BYTES = 2_000_000_000  # largest size of the images of one frame in a file of `evaluate`
RESUME = "to resume it, run its `distill train` again"
PASS = "pass a folder of `distill train` or `distill denoise`"
MADE_HERE = '<meta name="generator" content="distill report">'


def report(
    runs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    out: str | Path | None = None,
    *,
    overwrite: bool = False,
) -> Path:
    """Writes an HTML page about runs -> its path. The page needs no network and no other files.

    Args:
        runs: finished runs or their folders, with or without a student. The page shows their training, and
            the results of `evaluate` and `calibrate` in these folders and their subfolders.
        out: HTML file to write. Default: report.html in the folder of the first run.
        overwrite: replace `out` even if it is not a report.

    Raises:
        UserError: if a run is not finished, its files are damaged, or `out` cannot be written.
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
    environment.filters["flags"] = _flags
    page = environment.from_string(source).render(
        title="Report: " + ", ".join(run.name for run in runs),
        versions=f"posterior-distill {version('posterior-distill')}, torch {torch.__version__}, "
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
        raise UserError(f"{out}: exists and is not a report; pass another name, or --overwrite")


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """UserError for files of a run that are damaged or do not belong together."""
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError, LookupError, TypeError, BadZipFile, csv.Error) as error:
        raise UserError(
            f"{path}: damaged or incomplete ({type(error).__name__}: {error}); delete it, or create it again"
        ) from error


def _table1(runs: list[Path]) -> list[list[str]]:
    """Rows of a table of all runs as Table 1 of the paper, headings first."""
    rows: list[Row] = []
    for run, label in zip(runs, distinct([run.name for run in runs]), strict=True):
        tables = [_rows(table) for table in _tables(run)]
        tables = [table for table in tables if table and table[0].get("psnr_mean") is not None]
        names = distinct([str(table[0]["data"]) for table in tables])
        for name, table in zip(names, tables, strict=True):
            rows += [row | {"data": name, "run": label} for row in table]
    return [[", ".join(line[:2]), *line[2:]] for line in table1_cells(rows)]


def _tables(run: Path) -> list[Path]:
    """Tables of `evaluate` in the run's folder and below, except in other runs there; oldest first."""
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
    cost, evaluations = run / "cost.txt", []
    for table in _tables(run):
        with _damage_named(table):
            evaluations.append(_evaluation(table))
    return {
        "name": run.name,
        "evaluations": evaluations,
        "plots": _inline(plots),
        "cost": cost.read_text(encoding="utf-8") if cost.exists() else "",
        "description": describe_run(run),
        "settings": {key: value for key, value in settings.items() if key not in ("data", "networks")},
    }


def _evaluation(table: Path) -> dict[str, Any]:
    """The results of `evaluate` for the template, from this table and the files beside it."""
    rows, checks = _rows(table), table.with_name("checks.csv")
    data = str(rows[0]["data"])
    try:
        images = npz.read(table.with_suffix(".npz"), most_bytes=PICTURE_BYTES)
    except ValueError as error:
        raise UserError(f"{error}; evaluate again") from error
    scores = {str(row["image"]): float(row["psnr_mean"]) for row in rows if "psnr_mean" in row}
    residuals = {} if TRUTH in images else _residuals(table.with_name("residuals.json"))
    plots = curves.psnr_against_time(rows) if TRUTH in images else curves.residuals(residuals)
    return {
        "title": "Images from an array" if data == Stack.name else data,
        "verdict": verdict(rows),
        "next": next_step(rows),
        "table": cells(rows),
        "meanings": " ".join(meanings(rows)),
        "advice": worth(rows) + (advice(_rows(checks)) if checks.exists() else []),
        "plots": _inline(plots),
        "pictures": pictures(images, scores, residuals),
    }


def _flags(sentence: str) -> Markup:
    """The sentence, with no line break within options such as --budget 20min."""
    return Markup(re.sub(r"--[\w.]+( \w+)?", r'<span class="flag">\g<0></span>', str(escape(sentence))))


def _residuals(path: Path) -> dict[str, Curves]:
    """The curves of residuals by image; empty for results that are larger than the image."""
    if not path.exists():
        return {}
    with _damage_named(path):
        return json.loads(path.read_text(encoding="utf-8"))


def _inline(plots: list[tuple[str, str]]) -> list[tuple[Markup, str]]:
    return [(Markup(svg), caption) for svg, caption in plots]  # matplotlib escapes texts in its SVG
