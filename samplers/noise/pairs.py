"""Random pairs of signal and residual for fitting a noise model."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def draw_pairs(
    signal: Tensor | np.ndarray,
    observation: Tensor | np.ndarray,
    percentiles: tuple[float, float],
    max_pairs: int,
    rng: np.random.Generator,
    name: str,
) -> tuple[np.ndarray, np.ndarray, float, float]:
    """Random pairs within percentiles of the signal: (signal, observation - signal, low, high).

    low and high are the values of the signal at the percentiles. Raises a ValueError that begins with `name`
    if a noise model cannot be fitted to the pairs.
    """
    signal, observation = (
        v.detach().cpu().numpy() if torch.is_tensor(v) else np.asarray(v) for v in (signal, observation)
    )
    try:
        signal = np.broadcast_to(signal, observation.shape)
    except ValueError:
        raise ValueError(
            f"{name}: signal {signal.shape} does not broadcast to "
            f"observation {observation.shape}; pass e.g. (H, W) and (N, H, W)"
        ) from None
    picks = rng.integers(observation.size, size=min(observation.size, max_pairs))
    where = np.unravel_index(picks, observation.shape)
    s, x = signal[where].astype(np.float64), observation[where].astype(np.float64)
    if np.issubdtype(observation.dtype, np.integer):
        x += rng.uniform(-0.5, 0.5, len(x))  # a density fitted to integers would collapse on them
    finite = np.isfinite(s).all() and np.isfinite(x).all()
    low, high = np.percentile(s, percentiles) if finite and len(s) else (0, 0)
    if not finite or len(s) < 100 or low >= high:
        raise ValueError(
            f"{name}: {observation.size} pairs, too few, constant signal, or NaN "
            "or infinity; pass at least 100 finite pairs over a range of signals, or wider percentiles"
        )
    keep = (s >= low) & (s <= high)
    return s[keep].astype("f4"), (x - s)[keep].astype("f4"), float(low), float(high)
