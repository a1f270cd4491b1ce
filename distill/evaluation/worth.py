"""The number of draws that the student is worth, whose mean has the same error (paper, section 6)."""

import re
from collections.abc import Sequence

import numpy as np

from distill.evaluation.tables import Row

FAR = 10  # largest extrapolation: this factor times the most draws that were averaged


def worth(rows: Sequence[Row]) -> list[str]:
    """One sentence, if the rows of a table have ground truth, a student and two numbers of draws.

    The error of the mean of n independent draws is MSE(n) = a + b / n, with the sampler's own error a and the
    draws' variance b. Both are fitted to the rows by least squares of relative errors.
    """
    errors = {str(row["image"]): 10 ** (-float(row["psnr_mean"]) / 10) for row in rows if "psnr_mean" in row}
    numbers = {name: re.fullmatch(r"(\d+) draws?", name) for name in errors}
    of_draws = {int(match[1]): errors[name] for name, match in numbers.items() if match}
    if "student" not in errors or len(of_draws) < 2 or not np.isfinite([*errors.values()]).all():
        return []
    n, mse = (np.array(each, float) for each in zip(*sorted(of_draws.items()), strict=True))
    (a, b), *_ = np.linalg.lstsq(np.stack([1 / mse, 1 / (n * mse)], axis=1), np.ones(len(n)), rcond=None)
    if b <= 1e-6 * mse[0]:  # more draws do not help: all are the same, or there are too few pixels
        return []
    return [f"The student is {_compared(errors['student'], max(a, 0.0), b, int(n[-1]))}."]


def _compared(student: float, a: float, b: float, most: int) -> str:
    if student <= a:
        return "better than the mean of any number of draws"
    equal = b / (student - a)
    if equal > FAR * most:
        return f"better than the mean of {FAR * most:,} draws"
    if equal < 1:
        return "worse than a single draw"
    rounded = f"{float(f'{equal:.2g}'):,.0f}" if equal >= 9.5 else f"{equal:.1f}"
    return f"as good as the mean of about {rounded} draws"
