"""A plot of the student's loss against steps, updated during training."""

import time
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_qtagg import FigureCanvasQTAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from distill.files import read_json_lines
from distill.plots.curves import DRAWS, STUDENT

GREY = "#888888"  # visible in dark and light themes
EVERY = 1.0  # s; shortest time between two updates, since a GPU logs faster
HELD_OUT = ("val_split_error", "val_student_loss")  # shows the first metric that the training logs


class Curve(FigureCanvasQTAgg):
    """The loss on training patches and the loss on held-out patches, each with its own axis."""

    def __init__(self) -> None:
        super().__init__(Figure(figsize=(3, 2), layout="constrained", facecolor="none"))
        self.setMinimumHeight(140)
        self.setStyleSheet("background: transparent")
        left = self.figure.subplots()
        left.set_xlabel("step", color=GREY, fontsize=7)
        self.training = _line(left, "-", DRAWS, "loss, training")
        self.held_out = _line(left.twinx(), "o-", STUDENT, "loss, held out")
        self.rows: list[dict[str, Any]] = []
        self.drawn = 0.0

    def begin(self, folder: Path | None) -> None:
        """Starts with the rows of a run that resumes from its folder; None hides the plot."""
        metrics = folder / "metrics.jsonl" if folder else None
        self.rows = read_json_lines(metrics) if metrics and metrics.exists() else []
        self.setVisible(folder is not None)
        self._draw_rows()

    def add(self, row: dict[str, Any]) -> None:
        self.rows = [each for each in self.rows if each.get("step", row["step"]) < row["step"]] + [row]
        is_validation = any(key in row for key in HELD_OUT)
        if is_validation or time.monotonic() - self.drawn > EVERY:
            self._draw_rows()

    def _draw_rows(self) -> None:
        held_out = next((key for key in HELD_OUT if any(key in row for row in self.rows)), "")
        for line, key in ((self.training, "student_loss"), (self.held_out, held_out)):
            points = [(row["step"], row[key]) for row in self.rows if key in row]
            line.set_data([step for step, _ in points], [loss for _, loss in points])
        for axis in self.figure.axes:
            axis.relim()
            axis.autoscale_view()
        self.draw_idle()
        self.drawn = time.monotonic()


def _line(axis: Axes, style: str, colour: str, name: str) -> Line2D:
    axis.set_ylabel(name, color=colour, fontsize=7)
    axis.set_facecolor("none")
    axis.tick_params(colors=GREY, labelsize=6)
    for spine in axis.spines.values():
        spine.set_edgecolor(GREY)
    return axis.plot([], [], style, color=colour, markersize=3)[0]
