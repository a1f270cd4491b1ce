"""Pairs of signal and observation from noisy images alone.

The signal of a pixel is predicted from its neighbours and never from the pixel itself, so the error of the
prediction is independent of the pixel's noise.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

RADIUS = 3  # px; the neighbourhood is 7 x 7 pixels without its centre
ANGLES, STRENGTHS, LEVELS = 8, 3, 4  # number of classes of edge direction, edge strength and brightness
MAX_PIXELS, MAX_SIDE = 2_000_000, 1024
SHRINKAGE = 300  # weight of the filter common to all classes, in pixels


def blind_spot_pairs(frames, rng: np.random.Generator, smooth: float = 0.25) -> tuple[np.ndarray, np.ndarray]:
    """(signal, observation), two flat float32 arrays in raw counts, of at most 2 million pixels.

    The signal is a linear filter of the neighbours. The filter is learnt by least squares for each class of
    local edges (like RAISR, Romano et al. 2017, arXiv:1606.01299), with the noisy pixels as targets, which is
    as good as clean ones (Noise2Self, Batson & Royer 2019). The noise must be uncorrelated between pixels.

    Args:
        frames: images (N, C, Y, X) in raw counts.
        rng: random numbers for the crops.
        smooth: fraction of the pixels of each brightness that is returned, those with the least local
            structure, because structure that the filter cannot predict would count as noise.
    """
    pairs = [_pairs(crops, smooth) for crops in _crops(frames, rng)]
    signal, observation = (torch.cat(values).numpy() for values in zip(*pairs, strict=True))
    return signal, observation


def _crops(frames, rng: np.random.Generator):
    """Yields evenly spread frames (n, 1, h, w) of each channel; large frames are cropped."""
    n, channels, *size = frames.shape
    h, w = (min(s, MAX_SIDE) for s in size)
    count = max(1, min(n, round(MAX_PIXELS / (h * w * channels))))
    for c in range(channels):
        crops = []
        for i in np.linspace(0, n - 1, count).round().astype(int):
            y, x = (rng.integers(s - side + 1) for s, side in zip(size, (h, w), strict=True))
            crops.append(np.asarray(frames[int(i), c, y : y + h, x : x + w], dtype="f4"))
        yield torch.from_numpy(np.stack(crops))[:, None]


def _pairs(noisy: Tensor, smooth: float) -> tuple[Tensor, Tensor]:
    centre, scale = noisy.mean(), noisy.std().clamp(min=1e-12)
    x = (noisy - centre) / scale
    level, classes, structure = _classes(x)
    patches = F.unfold(x, 2 * RADIUS + 1).transpose(1, 2).flatten(0, 1)  # (pixels, 49)
    centre_column = patches.shape[1] // 2
    target = patches[:, centre_column].clone()
    patches[:, centre_column] = 1  # the column of the blind spot serves as the constant
    # Filters learnt on the left half predict the right half and vice versa: a filter that was learnt with a
    # pixel as target, or as neighbour of a target, would contain some of its noise.
    width = x.shape[-1] - 2 * RADIUS
    right = torch.arange(len(target)) % width >= width // 2
    signal = torch.empty_like(target)
    for train, test in ((right, ~right), (~right, right)):
        signal[test] = _predict(patches, target, classes, train, test)
    keep = []
    for members in level.argsort().chunk(60):
        order = structure[members].argsort()
        keep.append(members[order[: math.ceil(smooth * len(members))]])
    keep = torch.cat(keep)
    return signal[keep] * scale + centre, target[keep] * scale + centre


def _classes(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(brightness, class, strength of the structure) of each pixel, from its neighbours only."""
    c = torch.arange(-RADIUS, RADIUS + 1.0)
    v, u = torch.meshgrid(c, c, indexing="ij")
    window = torch.exp(-(v**2 + u**2) / 4.5) * ((v != 0) | (u != 0))
    window = window / window.sum()
    filters = torch.stack([window * m for m in (torch.ones_like(v), v, u, v * v - u * u, v * u)])
    level, down, right, *curved = F.conv2d(x, filters[:, None]).transpose(0, 1).flatten(1)
    angle = (torch.atan2(down, right) / (2 * torch.pi) + 0.5) * ANGLES
    strength = down**2 + right**2
    classes = angle.long().clamp(max=ANGLES - 1)
    for feature, n in ((strength, STRENGTHS), (level, LEVELS)):
        ends = feature[:: max(1, len(feature) // 100_000)].quantile(torch.linspace(0, 1, n + 1))
        classes = classes * n + torch.bucketize(feature, ends[1:-1])
    return level, classes, strength + sum(v**2 for v in curved)


def _predict(patches: Tensor, target: Tensor, classes: Tensor, train: Tensor, test: Tensor) -> Tensor:
    """Predicts the test targets by a ridge regression for each class, shrunk towards that of all classes."""
    index, query = train.nonzero()[:, 0], test.nonzero()[:, 0]
    sample = index[:: max(1, len(index) // 400_000)]
    prior = patches[sample].T @ patches[sample] / len(sample) + 1e-3 * torch.eye(patches.shape[1])
    prior_target = patches[sample].T @ target[sample] / len(sample)
    prediction = torch.empty(len(query))
    for c in classes.unique():
        members, goal = index[classes[index] == c], classes[query] == c
        a = patches[members]
        gram = a.T @ a + SHRINKAGE * prior
        filters = torch.linalg.solve(gram, a.T @ target[members] + SHRINKAGE * prior_target)
        prediction[goal] = patches[query[goal]] @ filters
    return prediction
