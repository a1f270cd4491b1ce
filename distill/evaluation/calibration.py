"""Conformal calibration of intervals on images with ground truth."""

import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import NormalDist

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from distill.denoiser import DirectDenoiser
from distill.errors import UserError
from distill.evaluation.pairs import paired
from distill.files import check_folder, write_json
from distill.hardware import Hardware, Precision
from distill.images.conditions import seen_by
from distill.images.sources import Images, as_stack, check_channels
from distill.limits import check_limits
from distill.prediction.receptive_field import maps_in_tiles
from distill.runs import checkpoint
from distill.runs.tensors import digest, load

MAX_PIXELS, MAX_FACTOR = 4_000_000, 1e6
_INTERVAL = re.compile(r"mean|median|std|q[\d.]+")  # maps that are a centre or a spread
LEVELS = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99]


@dataclass(frozen=True)
class Calibration:
    """The result of a calibration.

    Attributes:
        factor: factor of every distance from the central map.
        level: fraction of the true pixels that the intervals should contain.
        before: fraction of the pixels inside the intervals before the calibration.
        after: the same after the calibration.
        left_out: number of pixels without truth, or without a finite prediction.
    """

    factor: float
    level: float
    before: float
    after: float
    left_out: int = 0


def calibrate(
    run: str | os.PathLike[str],
    noisy: Images,
    clean: Images,
    *,
    level: float = 0.9,
    test_noisy: Images | None = None,
    test_clean: Images | None = None,
    device: str | None = None,
    precision: Precision = "auto",
    axes: str | None = None,
    trust: str | Sequence[str] = (),
    conditions: Images | None = None,
) -> Calibration:
    """Scales a student's intervals so that they contain `level` of the true pixels, stored in the run.

    An interval extends from the lowest to the highest quantile map, or is mean +- z std. All its distances
    from the central map get one factor, the split-conformal quantile of |truth - centre| / distance (Romano
    et al. 2019, arXiv:1905.03222, in the scaling form). It is valid for images like these. Pixels of one
    image are not independent, so many images are better than many pixels.

    Args:
        run: folder of a run; later predictions by its student have the new intervals.
        noisy: noisy images that were not used for training.
        clean: their ground truth, one frame for all noisy frames or one for each, with NaN for pixels
            without truth.
        level: fraction of the true pixels that the intervals should contain, between 0 and 1; 0.9 fits the
            quantiles 0.05 and 0.95.
        test_noisy: other noisy images, for which the coverage is reported. Default: the same images.
        test_clean: their ground truth.
        device: "cpu", "cuda", "cuda:1", "mps". Default: the best device of this machine.
        precision: "auto" (bf16 if the hardware has it), "bf16" or "fp32".
        axes: letters of the images' dimensions, of STCZYX. Default: those of the file.
        trust: your modules whose classes the run may name; they are imported. Default: none.
        conditions: maps that the run was trained with beside the images, such as a mask: one frame for all
            images of `noisy` and of `test_noisy`, or one for each. Default: none.
    """
    check_limits(locals())
    if (test_noisy is None) != (test_clean is None):
        raise UserError("test_noisy, test_clean: got one of them; pass both or neither")
    hardware, folder = Hardware(device, precision), Path(run)
    if not folder.is_dir():
        raise UserError(f"{run}: not a folder; pass the folder of a run, in which the calibration is stored")
    check_folder(folder)
    tensors, header = load(folder / "student.safetensors")
    denoiser = checkpoint.load_denoiser(run, trust=trust).to(hardware.device)
    earlier = float(denoiser.spread / tensors["spread"].to(denoiser.spread))  # by an earlier calibration
    outputs = denoiser.loss.outputs
    if len(outputs) < 2 or not all(_INTERVAL.fullmatch(name) for name in outputs):
        raise UserError(
            f"{run}: its student gives {' and '.join(outputs)}, no interval; train one "
            "with --loss Quantiles or MeanVariance"
        )
    pairs = _pairs(denoiser, run, noisy, clean, axes, conditions)
    tests = pairs
    if test_noisy is not None and test_clean is not None:
        tests = _pairs(denoiser, run, test_noisy, test_clean, axes, conditions)
    scores = earlier * _scores(denoiser, pairs, level, hardware)
    left_out = int(np.isnan(scores).sum())
    scores = scores[~np.isnan(scores)]
    if not len(scores):
        raise UserError("clean: no pixel has both a truth and a finite prediction; pass images with both")
    rank = min(len(scores), int(np.ceil((len(scores) + 1) * level)))
    factor = float(np.partition(scores, rank - 1)[rank - 1])
    if not 0 < factor < MAX_FACTOR:
        raise UserError(
            f"{run}: intervals would have to be scaled by {factor:.3g}; the truth and the prediction, or "
            "their units, do not belong together"
        )
    tested = scores if tests is pairs else earlier * _scores(denoiser, tests, level, hardware)
    tested = tested[~np.isnan(tested)]
    if not len(tested):
        raise UserError("test_clean: no pixel has both a truth and a finite prediction")

    def inside(bound: float) -> float:
        return float((tested <= bound).mean())

    calibration = Calibration(factor, level, inside(1), inside(factor), left_out)
    # A std gives intervals of every level, quantiles only those of their own levels.
    curve = {p: _z(p) / _z(level) for p in LEVELS} if "std" in outputs else {level: 1.0}
    stored = asdict(calibration) | {"student": digest(tensors, header), "levels": list(curve)}
    stored |= {"coverage_before": [inside(bound) for bound in curve.values()]}
    stored |= {"coverage_after": [inside(factor * bound) for bound in curve.values()]}
    write_json(folder / checkpoint.CALIBRATION, stored)
    denoiser.spread *= factor / earlier  # for a Run in memory
    return calibration


def _pairs(
    denoiser: DirectDenoiser,
    run: str | os.PathLike[str],
    noisy: Images,
    clean: Images,
    axes: str | None,
    conditions: Images | None,
) -> Sequence[tuple[Tensor, Tensor]]:
    stack = as_stack(noisy, axes)
    check_channels(stack, checkpoint.name_of(run), denoiser.plane_channels)
    seen = seen_by(denoiser, checkpoint.name_of(run), stack, conditions)
    return paired(seen, clean, axes, denoiser=denoiser)


def _z(level: float) -> float:
    """Half the width of the central interval of a Gaussian, in units of its std."""
    return NormalDist().inv_cdf(0.5 + level / 2)


@torch.no_grad()
def _scores(
    denoiser: DirectDenoiser, pairs: Sequence[tuple[Tensor, Tensor]], level: float, hardware: Hardware
) -> np.ndarray:
    """|truth - centre| in units of the interval on that side, of some pixels, flat.

    It is at most 1 inside the interval, and NaN without a truth or a prediction.
    """
    rng, per_image = np.random.default_rng(0), max(1, MAX_PIXELS // len(pairs))
    scores = []
    for noisy, clean in tqdm(pairs, desc="calibrate", unit="frame"):
        with hardware.autocast():
            maps = maps_in_tiles(denoiser, noisy[None].to(hardware.device))
        low, centre, high = (v[0].float().cpu() for v in interval(maps, level))
        distance = torch.where(clean > centre, high - centre, centre - low)
        valid = clean.isfinite() & centre.isfinite() & distance.isfinite()
        score = (clean - centre).abs() / distance.clamp(min=1e-12)
        score = torch.where(valid, score, torch.nan).flatten().numpy()
        scores.append(score if len(score) <= per_image else rng.choice(score, per_image, replace=False))
    return np.concatenate(scores)


def interval(maps: dict[str, Tensor], level: float) -> tuple[Tensor, Tensor, Tensor]:
    """(low, centre, high): the outermost quantile maps, or the mean -+ z std of a Gaussian."""
    centre, *others = maps.values()
    if "std" in maps:
        half_width = _z(level) * maps["std"]
        return centre - half_width, centre, centre + half_width
    stacked = torch.stack([centre, *others])
    return stacked.amin(0), centre, stacked.amax(0)
