"""The result of an evaluation in sentences, for readers without a manual."""

import csv
from collections.abc import Sequence
from pathlib import Path

from distill.evaluation.checks import advice
from distill.evaluation.compare import INPUT
from distill.evaluation.tables import Row, in_counts
from distill.evaluation.worth import worth

CORRELATED = 0.1  # correlation of neighbouring residuals from which on it is reported
SPREAD_OFF = 0.1  # relative difference of the residuals' std from that of the noise model
BEHIND = 0.3  # dB below the mean of the draws from which on a longer training is advised


def summary(folder: Path) -> list[str]:
    """The verdict on the results of `evaluate` in a folder, the student's worth, advice and next step."""
    rows, parts = read_table(folder / "evaluation.csv"), read_table(folder / "checks.csv")
    return [*filter(None, [verdict(rows), *worth(rows), *advice(parts), next_step(rows)])]


def verdict(rows: Sequence[Row]) -> str:
    """One sentence on the student, about its gain with ground truth, otherwise about its residuals.

    It is empty for a run without a student, and for a student whose answer has another size than the images.
    """
    named = _by_name(rows)
    student = named.get("student", {})
    if "psnr_mean" in student:
        return _gain(named)
    if "residual_std" not in student:
        return ""
    stds = {key: in_counts(float(v)) for key, v in student.items() if key.endswith("_std")}
    return SENTENCES[_finding(student)].format(**student | stds)


def next_step(rows: Sequence[Row]) -> str:
    named = _by_name(rows)
    student = named.get("student", {})
    if "residual_std" in student:
        return STEPS[_finding(student)]
    if any(gain < -BEHIND for gain in _gains(named).values()):
        return "Next: train the student for longer; under the loss L2 it should reach the mean of the draws."
    return "Next: denoise further images of this kind with this run (distill predict)."


def _by_name(rows: Sequence[Row]) -> dict[str, Row]:
    return {str(row["image"]): row for row in rows}


def _gains(named: dict[str, Row]) -> dict[str, float]:
    """PSNR of the student minus that of what it is compared with, in dB, by the name of that."""
    draws = [name for name in named if "draw" in name][-1:]
    others = {"the noisy images": INPUT} if INPUT in named else {}
    others |= {"a single draw" if name == "1 draw" else f"the mean of {name}": name for name in draws}
    psnr = {name: float(row["psnr_mean"]) for name, row in named.items() if "psnr_mean" in row}
    return {text: psnr["student"] - psnr[name] for text, name in others.items() if "student" in psnr}


def _gain(named: dict[str, Row]) -> str:
    gains = _gains(named).items()
    texts = [f"{abs(v):.2f} dB {'better' if v >= 0 else 'worse'} than {text}" for text, v in gains]
    return f"One pass of the student is {' and '.join(texts)}." if texts else ""


def _finding(student: Row) -> str:
    std = float(student["residual_std"])
    if not std > 0:
        return "nothing"
    along = [float(student["correlation_x"]), float(student["correlation_y"])]
    if max(along) > CORRELATED:
        return "correlated"
    if min(along) < -CORRELATED:
        return "smooth noise left"
    ratio = std / float(student.get("expected_std") or std)
    return "strong" if ratio > 1 + SPREAD_OFF else "weak" if ratio < 1 - SPREAD_OFF else "noise"


_ALONG = "({correlation_x:.2f} along x, {correlation_y:.2f} along y)"
SENTENCES = {
    "noise": "The residuals look like noise: nothing of the image seems to be lost.",
    "nothing": "Nothing was removed: the student returns the noisy images.",
    "correlated": f"Neighbouring pixels of the residuals are correlated {_ALONG}: either the noise itself is "
    "correlated, or structure of the image was removed with it.",
    "smooth noise left": f"Neighbouring pixels of the residuals are negatively correlated {_ALONG}: noise "
    "that is smooth from pixel to pixel seems to be left in the image.",
    "strong": "The residuals have a std of {residual_std} counts, but the noise model expects "
    "{expected_std}: structure of the image was removed with the noise, or the noise model is "
    "too narrow.",
    "weak": "The residuals have a std of {residual_std} counts, but the noise model expects "
    "{expected_std}: noise is left in the image, or the noise model is too wide.",
}
_MODEL = (
    "fit a noise model to repeats or dark frames (distill noise-model fit --kind correlated), and train with "
    "it (distill train --sampler.noise_model FILE)."
)
STEPS = {
    "noise": "Next: look at the pictures. If they lack fine detail, train for longer (distill denoise "
    "--budget 20min), which may improve it a little.",
    "correlated": "Next: look for structure in the picture of the residuals. If the noise is correlated, "
    + _MODEL,
    "smooth noise left": f"Next: look at the zoom; if noise is left there, {_MODEL}",
}
STEPS["nothing"] = "Next: train for longer, and check that the images are raw counts with noise."
STEPS["strong"] = STEPS["weak"] = "Next: fit the noise model to these images (distill noise-model fit)."


def read_table(table: Path) -> list[Row]:
    """The rows of a file of `write_csv`, without empty cells."""
    with open(table, encoding="utf-8") as file:
        return [{k: _value(v) for k, v in row.items() if v} for row in csv.DictReader(file)]


def _value(text: str) -> str | float:
    try:
        return float(text)
    except ValueError:
        return text
