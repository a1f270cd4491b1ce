"""Logs of the training metrics: metrics.jsonl, TensorBoard, a function of the user."""

import json
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

from distill.errors import UserError
from distill.files import read_json_lines, write_text

Log = Callable[[dict[str, Any]], object]


class Metrics:
    """Appends each row to metrics.jsonl in the run's folder and passes it to the other logs.

    A log may raise KeyboardInterrupt to stop the training, which sets `interrupted`.
    """

    def __init__(self, out: Path, logs: list[Log]) -> None:
        self.path, self.logs, self.interrupted = out / "metrics.jsonl", logs, False

    def write(self, row: dict[str, Any]) -> None:
        with open(self.path, "a") as file:
            file.write(json.dumps(row) + "\n")
        for log in self.logs:
            try:
                log(row)
            except KeyboardInterrupt:
                self.interrupted = True

    def forget_after(self, step: int) -> None:
        """Removes the rows of later steps, because a resumed run repeats the steps after its checkpoint."""
        if self.path.exists():
            rows = [row for row in read_json_lines(self.path) if row.get("step", step + 1) <= step]
            write_text(self.path, "".join(json.dumps(row) + "\n" for row in rows))


def tensorboard_log(out: Path) -> Log:
    """A log that writes the numbers of each row to event files in the run's folder."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError(
            "tensorboard: not installed; pip install tensorboard, or omit it: metrics.jsonl has all of it"
        ) from None
    writer = cache(partial(SummaryWriter, str(out)))  # creates its file with the first row

    def log(row: dict[str, Any]) -> None:
        for key in row.keys() - {"step"}:
            writer().add_scalar(key, row[key], row["step"])
        writer().flush()

    return log
