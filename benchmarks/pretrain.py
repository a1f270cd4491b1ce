"""Trains the weights that ship with the package, only on synthetic fields and synthetic cameras.

    python benchmarks/pretrain.py mean --out students/stabilized.safetensors        of StabilizedUNet
    python benchmarks/pretrain.py correlated --out students/correlated.safetensors  for correlated noise
    python benchmarks/pretrain.py spread --out samplers/stabilized.safetensors      of StabilizedSampler
    python benchmarks/pretrain.py correlated_spread --out samplers/correlated.safetensors

20 to 24 CPU minutes each, `mean` 90, after 2 for the fields; --share 0.01 --fields 8 is a quick trial. They
are written in half precision. `correlated` starts from the weights of `mean` that ship with the package; a
spread is trained beside the mean that ships.

The weights that ship: the last two stages of `mean` were `--stage 2 --fields 600` (when it had three) and
`--stage 3 --fields 600 --seed 1`; the spread was trained between them. The first two, `correlated` and its
spread are older, and saw the fields of commit 35991ff, which had no fur, lattices or surfaces.

The networks never see counts but z, in which noise of variance a * signal + b has variance 1 at any camera:
z = 2 sqrt(y + 3/8), continued as a line below y = 0, of y = counts / a + b / a^2, whose variance is its mean.
With d = z + the first network's answer, y = d^2 / 4 - 3/8 is trained to be the posterior mean of the signal;
draws are d plus the second network's answer, and trained by the energy score.
"""

import argparse
import copy
import math
from collections.abc import Callable, Sequence
from itertools import repeat
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.random import Generator
from pretrain_fields import bank, loguniform
from safetensors.torch import load_file, save_file
from scipy.ndimage import gaussian_filter, zoom
from scipy.signal import lfilter
from scipy.special import ndtr
from torch import Tensor, nn
from tqdm import trange

from distill.hardware import has_fast_bf16, keep_freed_memory
from samplers import StabilizedSampler
from students import StabilizedUNet
from students.stabilized import FLAT, LAGS

FAR = 24  # px, drawn beyond every side of correlated noise and cropped
UNKNOWN = 0.2  # of correlated noise, as for the first estimate of it
EXACT = 0.15  # the last share of the steps, in float32


class Stage(NamedTuple):
    """patches of size x size px in each of so many steps, at a learning rate that decays to zero."""

    steps: int
    patches: int
    size: int
    lr: float
    warmup: int = 100


STAGES = {
    "mean": (
        Stage(12_000, 4, 96, 2e-3),
        Stage(4_000, 3, 128, 8e-4),
        Stage(14_000, 3, 128, 1e-3),
        Stage(11_000, 3, 128, 8e-4),
    ),
    "correlated": (Stage(10_000, 4, 96, 2e-3), Stage(3_000, 3, 128, 8e-4)),
    "spread": (Stage(7_000, 4, 96, 1e-3, 300),),
    "correlated_spread": (Stage(7_000, 4, 96, 1e-3, 300),),
}


class Observation(NamedTuple):
    """z of a noisy patch and of its expectation, and what prediction knows beside the image.

    This is the mean z of the whole field, and the noise's correlation at LAGS, 0 if it is unknown.
    """

    z: np.ndarray
    target: np.ndarray
    level: float
    correlation: np.ndarray = np.zeros(len(LAGS))


Camera = Callable[[Generator, np.ndarray, np.ndarray], Observation]


class Mean:
    """StabilizedUNet, by the error of each patch. Only for correlated noise it is told about it."""

    def __init__(self, correlated: bool = False) -> None:
        self.correlated, self.network = correlated, StabilizedUNet()
        told = self.network.told
        if correlated:
            start = copy.deepcopy(told.state_dict())
            self.network.load_pretrained()
            told.load_state_dict(start)  # the zeros that this has just loaded could not learn
        else:
            for p in told.parameters():
                nn.init.zeros_(p)

    def answer(self, z: Tensor, level: Tensor, correlation: Tensor) -> Tensor:
        return z + self.network.maps(z, level, correlation)[:, :, 0]

    def loss(self, answer: Tensor, target: Tensor) -> Tensor:
        each = error(answer, target).square().mean((1, 2, 3))
        return (each + 1e-3).sqrt().mean()  # near the logarithm: a flat patch counts, too


class Spread:
    """What StabilizedSampler's draws add to the mean that ships, by their energy score."""

    def __init__(self, correlated: bool = False) -> None:
        self.correlated, self.sampler = correlated, StabilizedSampler()
        self.sampler.mean.correlated = correlated
        self.sampler.mean.load_pretrained()
        self.network = self.sampler.spread

    def answer(self, z: Tensor, level: Tensor, correlation: Tensor) -> Tensor:
        with torch.no_grad():
            centre, seen = self.sampler.answer_z(z, level, correlation)
        features = self.network.look(seen)
        return torch.cat([centre + self.network(features) for _ in range(self.sampler.score.samples)], dim=1)

    def loss(self, answer: Tensor, target: Tensor) -> Tensor:
        return self.sampler.score(answer, target[None])


def train(learner: Mean | Spread, fields: np.ndarray, stage: Stage, seed: int) -> dict[str, Tensor]:
    """The running average of the network's weights."""
    rng, network = np.random.default_rng(seed), learner.network.to(memory_format=torch.channels_last)
    average = {name: p.detach().clone() for name, p in network.named_parameters()}
    optimizer = torch.optim.AdamW(network.parameters(), lr=stage.lr, betas=(0.9, 0.99), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda t: min((t + 1) / stage.warmup, 1) * 0.5 * (1 + math.cos(math.pi * t / stage.steps))
    )
    fast, bar, shown = has_fast_bf16(torch.device("cpu")), trange(stage.steps, unit="step"), 1.0
    for t in bar:
        z, target, *known = batch(rng, fields, stage, observe_correlated if learner.correlated else observe)
        with torch.autocast("cpu", torch.bfloat16, enabled=fast and t < (1 - EXACT) * stage.steps):
            answer = learner.answer(z, *known)
        loss = learner.loss(answer, target)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        keep = min(0.998, 1 - 1 / (t + 1))
        for name, p in network.named_parameters():
            average[name].lerp_(p.detach(), 1 - keep)
        shown += (loss.item() - shown) / min(t + 1, 1000)
        bar.set_postfix(loss=f"{shown:.4f}", refresh=False)
    return average


def pretrain(
    learner: Mean | Spread,
    fields: np.ndarray,
    stages: Sequence[Stage],
    out: Path,
    first: int = 0,
    seed: int = 0,
) -> None:
    """Each stage starts from the averaged weights that the one before wrote, in half precision, to `out`."""
    for number, stage in enumerate(stages[first:], first):
        if number:
            learner.network.load_state_dict({k: v.float() for k, v in load_file(out).items()}, strict=False)
        weights = train(learner, fields, stage, seed)
        save_file({k: v.half().contiguous() for k, v in weights.items()}, out)


def error(d: Tensor, target: Tensor) -> Tensor:
    """Error of y, in its own standard deviations: its square is least at the posterior mean of y."""
    ratio = (d + target) / (2 * d.detach().clamp(min=1))  # 1, but for the curvature of the square
    return (d - target) * ratio.clamp(0.5, 2)


def batch(rng: Generator, fields: np.ndarray, stage: Stage, camera: Camera) -> tuple[Tensor, ...]:
    """z and target (n, 1, size, size), level (n, 1, 1, 1), correlation (n, 1, len(LAGS))."""
    seen = [camera(rng, *patch(rng, fields, stage.size)) for _ in repeat(None, stage.patches)]
    z, target, level, correlation = (
        torch.from_numpy(np.stack(v).astype("f4"))[:, None] for v in zip(*seen, strict=True)
    )
    return z, target, level[..., None, None], correlation


def patch(rng: Generator, fields: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """(a turned, sometimes shrunk or inverted patch, every 8th pixel of its field), both in 0..1."""
    whole = fields[rng.integers(len(fields))]
    zoom = 2 if rng.random() < 0.2 and 2 * size <= whole.shape[0] else 1
    y, x = rng.integers(0, whole.shape[0] - zoom * size + 1, 2)
    p = whole[y : y + zoom * size, x : x + zoom * size].astype("f4")
    p = p.reshape(size, zoom, size, zoom).mean((1, 3))
    p = np.rot90(p, int(rng.integers(4)))
    p, whole = p[:, :: rng.choice([-1, 1])], whole[::8, ::8].astype("f4")
    gamma = rng.choice([1, loguniform(rng, 0.6, 2.5)])
    p, whole = p**gamma, whole**gamma
    return (1 - p, 1 - whole) if rng.random() < 0.2 else (p, whole)


def observe(rng: Generator, p: np.ndarray, whole: np.ndarray) -> Observation:
    """A patch in 0..1 as some camera sees it."""
    return observe_gaussian(rng, p, whole) if rng.random() < 0.12 else observe_photons(rng, p, whole)


def observe_gaussian(rng: Generator, p: np.ndarray, whole: np.ndarray) -> Observation:
    peak, step = loguniform(rng, 2, 60), rng.choice([0, loguniform(rng, 0.1, 1.5)])
    noisy = peak * p + rng.normal(size=p.shape)
    noisy = np.rint(noisy / step) * step if step else noisy
    std = math.sqrt(1 + step**2 / 12) * math.exp(rng.normal(0, 0.05))  # an estimate is off by some per cent
    level = peak * whole.mean() / std + rng.normal(0, 0.5)
    return Observation(FLAT + noisy / std, FLAT + peak * p / std, FLAT + level)


def observe_photons(rng: Generator, p: np.ndarray, whole: np.ndarray) -> Observation:
    """In units of photons: shot noise, and in part of them a photomultiplier's excess noise, read noise,
    rounding, clipping at zero and saturation."""
    peak = loguniform(rng, 0.5, 300)
    dark = loguniform(rng, 0.02, 3) if rng.random() < 0.7 else peak * loguniform(rng, 0.01, 4)
    read = rng.choice([0, rng.uniform(0, 1), rng.uniform(0, 2.5)])
    excess = rng.choice([0, 0, rng.uniform(0, 1)])
    step = rng.choice([0, loguniform(rng, 0.02, 1)])
    gain, offset = 1 + excess, read**2 + step**2 / 12  # variance = gain * expected + offset
    expected = peak * p + dark
    noisy = rng.poisson(expected).astype(float)
    noisy = excess * rng.gamma(noisy / excess) if excess else noisy
    noisy += rng.normal(0, read, p.shape) if read else 0
    if step:
        shift = rng.uniform(0, step)
        noisy = np.rint((noisy - shift) / step) * step + shift
    std = np.sqrt(gain * expected + offset)
    if rng.random() < 0.3 and (read > 0.5 or dark > 5):
        low = dark - rng.uniform(0, 3) * math.sqrt(gain * dark + offset)
        noisy, expected = np.maximum(noisy, low), low + above(expected - low, std)
    if rng.random() < 0.15:
        high = dark + peak * rng.uniform(0.4, 1)
        noisy, expected = np.minimum(noisy, high), high - above(high - expected, std)
    # The noise line that prediction will have is an estimate: off by some per cent.
    scale = gain * math.exp(rng.normal(0, 0.06))
    offset += rng.normal(0, 0.08) * (gain * dark + offset)
    z, target, field = (
        stabilize(v / scale + offset / scale**2) for v in (noisy, expected, peak * whole + dark)
    )
    return Observation(z, target, field.mean() + rng.normal(0, 0.5))


def observe_correlated(rng: Generator, p: np.ndarray, whole: np.ndarray) -> Observation:
    """Noise that is correlated between pixels: all of it, as after interpolation, or what electronics add to
    the shot noise."""
    if rng.random() < 0.1:
        return observe(rng, p, whole)
    peak, (noise, correlation) = loguniform(rng, 0.5, 300), correlated_noise(rng, (p.shape[0], p.shape[1]))
    dark = loguniform(rng, 0.02, 3) if rng.random() < 0.5 else peak * loguniform(rng, 0.01, 4)
    expected, kind = peak * p + dark, rng.choice(["shot", "constant", "added"], p=[0.4, 0.15, 0.45])
    read, level = rng.choice([0, rng.uniform(0, 2.5)]), math.sqrt(0.4 * peak + dark)
    gain, offset = 1.0, read**2
    if kind == "shot":
        noisy = expected + np.sqrt(expected + read**2) * noise
    elif kind == "constant":
        gain, offset = 0.0, (level * loguniform(rng, 0.2, 2)) ** 2
        noisy = expected + math.sqrt(offset) * noise
    else:
        added = level * loguniform(rng, 0.5, 5)
        offset += added**2
        noisy = rng.poisson(expected) + read * rng.normal(size=p.shape) + added * noise
        correlation = correlation * added**2 / (gain * expected.mean() + offset)
    step = rng.choice([0, loguniform(rng, 0.02, 1)])
    noisy = np.rint(noisy / step) * step if step else noisy
    offset += step**2 / 12
    correlation = correlation + rng.normal(0, 0.02, len(LAGS))  # an estimate, too
    correlation[0] = 1
    if rng.random() < UNKNOWN:
        correlation = np.zeros(len(LAGS))
    off_by = math.exp(rng.normal(0, 0.12))  # an estimate of such noise is less exact
    gain, offset = gain * off_by, offset * off_by + rng.normal(0, 0.08) * (gain * dark + offset)
    mean = float(peak * whole.mean() + dark)
    if gain * expected.std() < 1e-3 * (gain * expected.mean() + offset):
        std = math.sqrt(gain * expected.mean() + offset)
        noisy, expected = FLAT + noisy / std, FLAT + expected / std
        return Observation(noisy, expected, FLAT + mean / std + rng.normal(0, 0.5), correlation)
    z, target, field = (
        stabilize(v / gain + offset / gain**2) for v in (noisy, expected, peak * whole + dark)
    )
    return Observation(z, target, field.mean() + rng.normal(0, 0.5), correlation)


def correlated_noise(rng: Generator, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Noise of standard deviation 1, and its correlation at LAGS.

    It is white noise blurred, enlarged, or drawn out to lines, in part of them with white noise on top.
    """
    rows, columns = (side + 2 * FAR for side in shape)
    white = rng.normal(size=(rows, columns))
    kind = rng.choice(["blurred", "enlarged", "lines"], p=[0.3, 0.2, 0.5])
    if kind == "blurred":
        width, ratio = loguniform(rng, 0.35, 2), math.exp(rng.normal(0, 0.25))
        noise = gaussian_filter(white, (width * ratio, width / ratio))
    elif kind == "enlarged":  # by a colour camera, which sees a colour in every second pixel, or by software
        factor, order = 2 if rng.random() < 0.5 else loguniform(rng, 1.2, 3), int(rng.choice([1, 3]))
        small = white[: math.ceil(rows / factor), : math.ceil(columns / factor)]
        noise = np.asarray(zoom(small, factor, order=order))[:rows, :columns]
    else:
        noise = np.asarray(lfilter([1.0], [1.0, loguniform(rng, 0.01, 0.7) - 1], white, axis=1))
        if rng.random() < 0.3:
            noise = gaussian_filter(noise, (rng.uniform(0, 0.6), 0))
        noise = noise.T if rows == columns and rng.random() < 0.5 else noise
    if kind != "lines" and rng.random() < 0.3:
        noise = noise / noise.std() + rng.uniform(0, 1) * rng.normal(size=noise.shape)
    rows, columns = len(noise), len(noise[0])
    pairs = [noise[y:, x:] * noise[: rows - y, : columns - x] for y, x in LAGS]
    correlation = np.array([pair.mean() / noise.var() for pair in pairs])
    noise = noise[FAR : FAR + shape[0], FAR : FAR + shape[1]]
    return noise / noise.std(), correlation


def stabilize(y: np.ndarray) -> np.ndarray:
    """As StabilizedUNet does, in double precision."""
    return 2 * np.sqrt(np.maximum(y, 0) + 3 / 8) + np.minimum(y, 0) / math.sqrt(3 / 8)


def above(mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """E[max(N(mean, std^2), 0)]."""
    t = mean / std
    return mean * ndtr(t) + std * np.exp(-(t**2) / 2) / math.sqrt(2 * math.pi)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("which", choices=STAGES)
    parser.add_argument("--out", type=Path, required=True, help="safetensors file to write")
    parser.add_argument("--share", type=float, default=1.0, help="of the steps")
    parser.add_argument("--fields", type=int, default=500)
    parser.add_argument("--stage", type=int, default=0, help="first stage; later ones start from --out")
    parser.add_argument("--seed", type=int, default=0, help="of the fields and the noise")
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    keep_freed_memory()
    kind = Spread if options.which.endswith("spread") else Mean
    learner = kind(options.which.startswith("correlated"))
    stages = [s._replace(steps=max(1, round(options.share * s.steps))) for s in STAGES[options.which]]
    pretrain(
        learner, bank(options.fields, seed=options.seed + 1), stages, options.out, options.stage, options.seed
    )


if __name__ == "__main__":
    main()
