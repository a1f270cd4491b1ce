"""Likelihoods of integer observations: the probability of a bin in place of a density."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def log_bin_probability(
    noisy: Tensor, mean: Tensor, variance: Tensor, step: float, clip: Sequence[float] | None
) -> Tensor:
    """log[Phi((x + step/2 - mean) / std) - Phi((x - step/2 - mean) / std)], in the broadcast shape.

    The bins at the ends of `clip` contain the whole tail. The result is accurate in both tails, because it is
    computed from |x - mean| in the left tail, where log_ndtr is exact.
    """
    # The probability of a bin of 0.001 std is the difference of two nearly equal numbers, lost in float32.
    accurate = torch.float32 if noisy.device.type == "mps" else torch.float64
    noisy, mean, std = noisy.to(accurate), mean.to(accurate), variance.to(accurate).sqrt()
    distance = (noisy - mean).abs()
    near = torch.special.log_ndtr((step / 2 - distance) / std)
    far = torch.special.log_ndtr((-step / 2 - distance) / std)
    log_p = near + (-torch.expm1(far - near)).log()
    if clip is not None:
        low, high = clip
        below = torch.special.log_ndtr((low + step / 2 - mean) / std)
        above = torch.special.log_ndtr((mean - high + step / 2) / std)
        log_p = torch.where(noisy <= low, below, torch.where(noisy >= high, above, log_p))
    return log_p.float()


def quantise(noisy: Tensor, step: float | None, clip: Sequence[float] | None) -> Tensor:
    """Rounds to multiples of `step` and clips; returns `noisy` unchanged if `step` is None."""
    if step is None:
        return noisy
    rounded = (noisy / step).round() * step
    return rounded if clip is None else rounded.clamp(*clip)


def checked(name: str, step: float | None, clip: Sequence[float] | None) -> list[float] | None:
    """Returns `clip` as plain numbers. ValueError if `step` and `clip` are not valid."""
    clip = None if clip is None else [float(v) for v in clip]
    bad_step = step is not None and not 0 < step < math.inf
    bad_clip = clip is not None and (step is None or len(clip) != 2 or not clip[0] < clip[1])
    if bad_step or bad_clip:
        raise ValueError(
            f"{name}: got step={step}, clip={clip}; pass step > 0 (1 for integers), "
            "and with it clip=(lowest, highest) value if the data type clips, or None"
        )
    return clip
