"""Distil any posterior sampler into a network that answers in one pass."""

import importlib
import importlib.util
from pathlib import Path
from typing import Any

from distill.errors import UserError

_HOMES = {
    "train": "training.engine", "PUBLISHED": "training.engine", "Run": "training.engine",
    "training_cost": "training.cost", "predict": "prediction.predict", "cache_draws": "prediction.cache",
    "evaluate": "evaluation.evaluate", "evaluate_all": "evaluation.evaluate",
    "calibrate": "evaluation.calibration", "psnr": "evaluation.metrics", "report": "reporting.page",
    "export": "exporting.export", "DirectDenoiser": "denoiser", "load_sampler": "runs.checkpoint",
    "load_denoiser": "runs.checkpoint", "specimen": "datasets", "read": "images.tiff",
    "write": "images.tiff", "Stack": "images.stack",
}  # fmt: skip
__all__ = ["UserError", *_HOMES]  # noqa: PLE0604


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
