"""Distil any posterior sampler into a network that answers in one pass."""

import importlib
import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.errors import UserError

# On a Mac's GPU, operations that lack there run on the CPU. PyTorch reads this when it is imported.
os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")

if TYPE_CHECKING:  # for editors and type checkers; below, the same names for Python
    from distill.datasets import specimen as specimen
    from distill.datasets import specimen_volume as specimen_volume
    from distill.denoiser import DirectDenoiser as DirectDenoiser
    from distill.denoising import denoise as denoise
    from distill.evaluation.calibration import calibrate as calibrate
    from distill.evaluation.evaluate import evaluate as evaluate
    from distill.evaluation.evaluate import evaluate_all as evaluate_all
    from distill.evaluation.metrics import psnr as psnr
    from distill.exporting.export import export as export
    from distill.exporting.hub import pull as pull
    from distill.exporting.hub import push as push
    from distill.hardware import keep_freed_memory as keep_freed_memory
    from distill.images.sources import read as read
    from distill.images.stack import Stack as Stack
    from distill.images.tiff_target import write as write
    from distill.prediction.cache import cache_draws as cache_draws
    from distill.prediction.predict import predict as predict
    from distill.reporting.page import report as report
    from distill.runs.checkpoint import load_denoiser as load_denoiser
    from distill.runs.checkpoint import load_sampler as load_sampler
    from distill.runs.published import import_published as import_published
    from distill.runs.run import Run as Run
    from distill.training.cost import training_cost as training_cost
    from distill.training.engine import PUBLISHED as PUBLISHED
    from distill.training.engine import train as train

_HOMES = {
    "denoise": "denoising", "keep_freed_memory": "hardware",
    "train": "training.engine", "PUBLISHED": "training.engine", "Run": "runs.run",
    "training_cost": "training.cost", "predict": "prediction.predict", "cache_draws": "prediction.cache",
    "evaluate": "evaluation.evaluate", "evaluate_all": "evaluation.evaluate",
    "calibrate": "evaluation.calibration", "psnr": "evaluation.metrics", "report": "reporting.page",
    "export": "exporting.export", "DirectDenoiser": "denoiser", "load_sampler": "runs.checkpoint",
    "load_denoiser": "runs.checkpoint", "specimen": "datasets",
    "specimen_volume": "datasets", "read": "images.sources",
    "write": "images.tiff_target", "Stack": "images.stack",
    "import_published": "runs.published", "push": "exporting.hub", "pull": "exporting.hub",
}  # fmt: skip
__all__ = ["UserError", *_HOMES]  # noqa: PLE0604  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    """Imports what is asked for when it is: `distill --help` needs no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'distill' has no attribute '{name}'")
    return getattr(importlib.import_module(f"distill.{_HOMES[name]}"), name)


def _check_siblings() -> None:
    """Their names are common ones: another package or file may stand before ours on the path."""
    here = Path(__file__).resolve().parent.parent
    for name in ("samplers", "students", "losses"):
        spec = importlib.util.find_spec(name)
        found = Path(spec.origin).resolve() if spec and spec.origin else None
        if found is None or found.parent != here / name:
            raise ImportError(
                f"distill needs its own package '{name}' in {here / name}, but Python finds "
                f"{found or 'none'}; rename or remove that, or install posterior-distill again"
            )


_check_siblings()
