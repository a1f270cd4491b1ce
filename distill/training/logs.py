"""Where the metrics of a training go beside metrics.jsonl."""

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

from distill.errors import UserError

Log = Callable[[dict[str, Any]], object]


def tensorboard_log(out: Path) -> Log:
    """Writes each row's numbers to event files in the run's folder."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError(
            "tensorboard: not installed; pip install tensorboard, or leave it out: metrics.jsonl has it all"
        ) from None
    writer = cache(partial(SummaryWriter, str(out)))  # makes its file when there is something to write

    def log(row: dict[str, Any]) -> None:
        for key in row.keys() - {"step"}:
            writer().add_scalar(key, row[key], row["step"])
        writer().flush()

    return log
