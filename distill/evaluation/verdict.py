"""What an evaluation tells, in sentences for someone who has read no manual."""

import csv
from collections.abc import Sequence
from pathlib import Path

from distill.evaluation.checks import advice
from distill.evaluation.compare import INPUT
from distill.evaluation.tables import Row

CORRELATED = 0.1  # of neighbouring residuals, above which noise is not of single pixels, or took signal along
SPREAD_OFF = 0.1  # of the residuals' std to the noise model's


def summary(folder: Path) -> list[str]:
    """The verdict on what `evaluate` left in a folder, its advice, and what to do next."""
    rows, parts = read_table(folder / "evaluation.csv"), read_table(folder / "checks.csv")
    return [verdict(rows), *advice(parts), next_step(rows)]


def verdict(rows: Sequence[Row]) -> str:
    """One sentence on the student: with ground truth on what it gains, else on its residuals."""
    student = _row(rows, "student")
    if "psnr_mean" in student:
        return _gain(rows, student)
    if "residual_std" not in student:
        return "The result is an image of another kind than the noisy one: only ground truth can judge it."
    return SENTENCES[_finding(student)].format(**student)


def next_step(rows: Sequence[Row]) -> str:
    student = _row(rows, "student")
    if "psnr_mean" in student:
        return "Next: denoise further images of this kind with this run (distill predict)."
    if "residual_std" not in student:
        return (
            "Next: look at the pictures, and evaluate images whose ground truth is known (distill evaluate)."
        )
    return STEPS[_finding(student)]


def _row(rows: Sequence[Row], image: str) -> Row:
    return next(row for row in rows if row["image"] == image)


def _gain(rows: Sequence[Row], student: Row) -> str:
    draws = [row for row in rows if "draw" in str(row["image"])][-1:]
    others = {f"the mean of {row['image']}": row for row in draws}
    if any(row["image"] == INPUT for row in rows):  # not where it is an image of another kind
        others = {"the noisy images": _row(rows, INPUT)} | others
    gains = {name: float(student["psnr_mean"]) - float(row["psnr_mean"]) for name, row in others.items()}
    texts = [f"{abs(v):.2f} dB {'above' if v >= 0 else 'below'} {name}" for name, v in gains.items()]
    return f"One pass of the student is {' and '.join(texts)}."


def _finding(student: Row) -> str:
    along = [float(student["correlation_x"]), float(student["correlation_y"])]
    if max(along) > CORRELATED:
        return "correlated"
    if min(along) < -CORRELATED:
        return "smooth noise left"
    std = float(student["residual_std"])
    ratio = std / float(student.get("expected_std") or std or 1.0)
    return "strong" if ratio > 1 + SPREAD_OFF else "weak" if ratio < 1 - SPREAD_OFF else "noise"


_ALONG = "({correlation_x:.2f} along x, {correlation_y:.2f} along y)"
SENTENCES = {
    "noise": "The residuals look like noise: nothing of the image seems to be lost.",
    "correlated": f"Neighbouring pixels of the residuals are correlated {_ALONG}: either the noise itself is "
    "correlated, or structure of the image was removed with it.",
    "smooth noise left": f"Neighbouring pixels of the residuals are correlated negatively {_ALONG}: noise "
    "that is smooth from pixel to pixel seems to be left in the image.",
    "strong": "The residuals have a std of {residual_std:.3g} where the noise model expects "
    "{expected_std:.3g} counts: structure of the image was removed with the noise, or the noise model is "
    "too narrow.",
    "weak": "The residuals have a std of {residual_std:.3g} where the noise model expects "
    "{expected_std:.3g} counts: noise is left in the image, or the noise model is too wide.",
}
_MODEL = (
    "fit a noise model to repeats or dark frames (distill noise-model fit --kind correlated), and train with "
    "it (distill train --sampler.noise_model FILE)."
)
STEPS = {
    "noise": "Next: look at the pictures; a longer training (--budget 20min) may make fine detail a little "
    "better.",
    "correlated": "Next: look for structure in the picture of the residuals. If the noise is correlated, "
    + _MODEL,
    "smooth noise left": f"Next: look at the zoom; if noise is left there, {_MODEL}",
}
STEPS["strong"] = STEPS["weak"] = "Next: fit the noise model to these images (distill noise-model fit)."


def read_table(table: Path) -> list[Row]:
    """What `write_csv` wrote; empty cells are left out."""
    with open(table, encoding="utf-8") as file:
        return [{k: _value(v) for k, v in row.items() if v} for row in csv.DictReader(file)]


def _value(text: str) -> str | float:
    try:
        return float(text)
    except ValueError:
        return text
