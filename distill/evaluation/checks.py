"""Checks draws and student against a posterior: dispersion, noise kept, and bias by brightness."""

import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from distill.evaluation.tables import Row, in_counts

PARTS = 9  # parts by brightness, darkest first; three each are dark, middle and bright
ENOUGH = 10  # draws; the noise of a mean of fewer would bias the order of its pixels by brightness

# A deviation is reported if it is relevant and larger than three standard errors. Errors are correlated over
# about 10 x 10 px, so N pixels count as N / 100; the noise is assumed to be white.
SPREAD_OFF = 0.1  # relative to the draws' std; an interval of 90 % then contains 86 %
KEPT_OFF = 0.2  # visible in a picture, though hardly in PSNR
BIAS_OFF = 0.3  # relative to the RMSE there, so that a tenth of the MSE is systematic
CORRELATED = 100  # px

REMEDIES = {  # finding: (remedy for the draws, remedy for the student)
    "keeps noise": (
        "check whether the noise model is too narrow there, or train on more images",
        "train the student longer, or on more images",
    ),
    "smooths signal away": (
        "check whether the noise model is too wide there, or train the sampler longer",
        "train the student longer, or take a larger one",
    ),
    "too low": (
        "check the noise model's offset and gain, or train the sampler longer",
        "train the student longer, with L2 if its mean matters",
    ),
}
REMEDIES["too high"] = REMEDIES["too low"]
FINE = "No fault was found in how much the draws differ, in noise left or detail lost, or in brightness."
LIMIT = "If the ground truth is a mean of few frames, its own noise lowers these numbers."


def by_brightness(
    name: str, estimate: Tensor, noisy: Tensor, clean: Tensor | None, variance: Tensor | None = None,
    draws: int = 0,
) -> list[Row]:  # fmt: skip
    """Averages over PARTS of the pixels of images (C, *S), from the darkest to the brightest.

    The parts have equally many pixels. Each row contains the brightness of the estimate, its bias, the
    covariance of error and noise, mse, noise_std and the relative_bias; without ground truth only the
    brightness. variance: variance of the `draws` whose mean is the estimate; mse is then that of a mean of
    infinitely many draws.
    """
    # In any estimate, the darkest pixels of the truth are too bright and the brightest too dark, because of
    # regression to the mean. Hence pixels are sorted by the estimate: then a posterior mean has no bias and a
    # covariance of error and noise that equals its MSE, as both hold given any function of the noisy image.
    parts = estimate.flatten(1).argsort(dim=1).tensor_split(PARTS, dim=1)  # each channel on its own
    averaged = {"brightness": estimate.double()}
    if variance is not None:
        averaged["variance"] = variance.double()
    if clean is not None:
        error, noise = estimate.double() - clean, noisy.double() - clean
        averaged |= {"bias": error, "covariance": error * noise, "mse": error**2, "noise": noise**2}
        if variance is not None:
            averaged["mse"] = error**2 - variance.double() / draws
    rows: list[Row] = []
    for pixels in parts:
        means = {key: float(v.flatten(1).gather(1, pixels).mean()) for key, v in averaged.items()}
        if clean is not None:
            means["noise_std"] = math.sqrt(means.pop("noise"))
            means["relative_bias"] = _ratio(means["bias"], means["noise_std"])
        if 0 < draws < ENOUGH and clean is not None:
            del means["bias"], means["relative_bias"]
        rows.append({"image": name, "pixels": float(pixels.numel()), **means})
    return rows


def columns(parts: Sequence[Row], image: str) -> Row:
    """The columns dispersion and kept of an image, if they can be computed.

    dispersion: MSE of one draw over that of the mean of infinitely many; 2 for draws from the posterior.
    kept: covariance of error and noise over the MSE; 1 for a posterior mean.
    """
    own = [row for row in parts if row["image"] == image]
    if not own or "mse" not in own[0]:
        return {}
    values = {"kept": _kept(own)}
    if "variance" in own[0]:
        values["dispersion"] = 1 + _ratio(_mean(own, "variance"), _mean(own, "mse"))
    return {key: value for key, value in values.items() if math.isfinite(value)}


def advice(parts: Sequence[Row]) -> list[str]:
    """Sentences on deviations and remedies, from the rows of `by_brightness` averaged over frames."""
    said, before = [], {}
    for image in dict.fromkeys(str(row["image"]) for row in parts):
        own = [row for row in parts if row["image"] == image]
        if "mse" not in own[0]:
            spread = math.sqrt(_mean(own, "variance"))
            said.append(
                f"The draws differ from their mean by {in_counts(spread)} counts (std); only ground truth "
                "can show whether that is the right amount."
            )
            continue
        if "variance" in own[0]:
            said += _dispersion(own)
        findings = _findings(own)
        said += _sentences(findings, image, before)
        before = findings
    if any("less than" in text or "smooths" in text for text in said):
        said.append(LIMIT)
    return said or ([FINE] if parts else [])


def _dispersion(own: Sequence[Row]) -> list[str]:
    ratio = _ratio(_mean(own, "variance"), _mean(own, "mse"))
    off = math.sqrt(ratio) - 1  # std of the draws over the RMSE of their mean, minus 1
    if not abs(off) > max(SPREAD_OFF, 3 * math.sqrt(0.5 * CORRELATED / _pixels(own))):
        return []
    way, model = ("less", "narrow") if off < 0 else ("more", "wide")
    disagree = f"The draws disagree {abs(off):.0%} {way} than a posterior's would"
    remedy = f"train the sampler longer, or check whether the noise model is too {model}"
    return [f"{disagree} ({1 + ratio:.1f} where 2 is right): {remedy}."]


Findings = dict[str, dict[str, str]]  # finding: {part of the pixels: numbers}


def _findings(own: Sequence[Row]) -> Findings:
    findings: Findings = {}
    for i, part in enumerate(("dark", "middle", "bright")):
        rows = own[i * PARTS // 3 : (i + 1) * PARTS // 3]
        mse, pixels, kept = _mean(rows, "mse"), _pixels(rows), _kept(rows)
        residual = _mean(rows, "noise_std") ** 2 - 2 * _mean(rows, "covariance") + mse
        if abs(kept - 1) > max(KEPT_OFF, 3 * math.sqrt(_ratio(max(0, residual), mse) / pixels)):
            kind = "keeps noise" if kept > 1 else "smooths signal away"
            findings.setdefault(kind, {})[part] = f"{round(kept, 1) + 0.0:.1f}"  # avoids -0.0
        if "bias" not in rows[0]:
            continue
        bias, relative = _mean(rows, "bias"), _mean(rows, "relative_bias")
        if abs(bias) > math.sqrt(max(0, mse)) * max(BIAS_OFF, 3 * math.sqrt(CORRELATED / pixels)):
            kind = "too high" if bias > 0 else "too low"
            findings.setdefault(kind, {})[part] = (
                f"{in_counts(abs(bias), 2)} counts ({abs(relative):.0%} of the noise)"
            )
    return findings


def _sentences(findings: Findings, image: str, of_draws: Findings) -> list[str]:
    is_student, said = image == "student", []
    who = "the student" if is_student else f"the mean of {image}"
    for finding, parts in findings.items():
        learnt = is_student and parts.keys() <= of_draws.get(finding, {}).keys()
        remedy = "so do its sampler's draws" if learnt else REMEDIES[finding][is_student]
        where, numbers = _listed(list(parts)), _listed(list(parts.values()))
        if finding.startswith("too"):
            remedy = "so they do in its sampler's draws" if learnt else remedy
            said.append(f"{where.capitalize()} parts come out {numbers} {finding} in {who}: {remedy}.")
        else:
            said.append(f"In {where} parts {who} {finding} ({numbers} where 1 is right): {remedy}.")
    return said


def _listed(words: list[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _kept(rows: Sequence[Row]) -> float:
    return _ratio(_mean(rows, "covariance"), _mean(rows, "mse"))


def _mean(rows: Sequence[Row], key: str) -> float:
    return float(np.mean([float(row[key]) for row in rows]))


def _pixels(rows: Sequence[Row]) -> float:
    return max(1.0, sum(float(row["pixels"]) for row in rows))


def _ratio(part: float, whole: float) -> float:
    """part / whole; NaN if whole is 0, with which every comparison is false."""
    return part / whole if whole > 0 else math.nan
