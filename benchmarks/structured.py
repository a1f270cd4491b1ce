"""Noise that is correlated between pixels: samplers, each with a student, compared with their alternatives.

    python benchmarks/structured.py lines            the built-in specimen with line noise
    DISTILL_TEST_DATA=... python benchmarks/structured.py g      (or r) real widefield BPAE

Prints one table and writes runs/structured/KIND/students.png. "noise left" is the slope of the error on the
true noise after a mean over 1 x 9 pixels (lines) or 3 x 3: 1 if all of the structured noise remains, 0 if it
is removed. "shipped" has no calibration and no training; "noise estimated" and "noise model fitted" are
StabilizedSampler, whose student is trained for a minute. The fitted noise models know the true noise of four
of the images (lines) or, where there is no truth, noisy minus the mean of the frames; so does BM3D, by a
power spectrum (`pip install bm3d`, not for commercial use). The filters have the size that is best by the
truth. The ceiling is the student from its shipped weights, taught by a second image of each signal: the clean
image on 60 other specimens, or the other frames (Noise2Noise).
"""

import argparse
import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch
from quality import ceiling, second_images
from scipy.ndimage import gaussian_filter, median_filter, uniform_filter
from torch import nn

from distill import DirectDenoiser, Run, cache_draws, psnr, specimen, train
from distill.hardware import keep_freed_memory
from distill.images.sources import as_stack
from distill.images.statistics import spread
from distill.noise_fitting.fit import Context
from distill.plots.pictures import comparison
from distill.prediction.pretrained import pretrained_denoiser, pretrained_sampler
from losses import L2
from samplers import (
    HDN,
    AutoregressiveNoise,
    CorrelatedNoise,
    GaussianNoise,
    JointNoiseVAE,
    PosteriorSampler,
    StabilizedSampler,
    StructuredNoiseVAE,
    posterior_mean,
)
from students import StabilizedUNet


def rivals(noisy: np.ndarray, clean: np.ndarray, noise: np.ndarray) -> dict[str, np.ndarray]:
    """Of one image (H, W), with images of its noise (N, H, W)."""
    found = {f"median filter, {n} px": median_filter(noisy, n) for n in (3, 5, 7, 9)}
    best = {"median": min(found, key=lambda k: np.square(found[k] - clean).mean())}
    found |= {f"Gaussian filter, {s} px": gaussian_filter(noisy, s) for s in (1, 1.5, 2, 3, 4)}
    gaussians = [k for k in found if k.startswith("Gaussian")]
    best["Gaussian"] = min(gaussians, key=lambda k: np.square(found[k] - clean).mean())
    chosen = {name: found[name] for name in best.values()}
    try:
        import bm3d  # pyright: ignore[reportMissingImports]: not for commercial use, hence no dependency
    except ImportError:
        return chosen
    np.__dict__.setdefault("trapz", np.trapezoid)  # bm3d knows it by a name that NumPy has no more
    power = np.abs(np.fft.fft2(noise - noise.mean((1, 2), keepdims=True))) ** 2
    return chosen | {"BM3D, power spectrum": np.asarray(bm3d.bm3d(noisy, power.mean(0)))}


def fm2s_like(noisy: np.ndarray, smooth: np.ndarray, noise: CorrelatedNoise) -> np.ndarray:
    """A small network that learns, from one image (H, W) alone, to undo the noise that is added to a filtered
    version of it (after FM2S, Liu et al. 2024; its noise is white, here it is the image's own)."""
    torch.manual_seed(0)
    rng, (low, span) = np.random.default_rng(0), (smooth.min(), np.ptp(smooth))
    clean = torch.from_numpy(smooth)[None, None]
    pool = torch.cat([noise.sample(clean) for _ in range(8)])
    net = nn.Sequential(
        nn.Conv2d(1, 24, 5, padding=2, padding_mode="reflect"), nn.ReLU(),
        nn.Conv2d(24, 12, 3, padding=1, padding_mode="reflect"), nn.ReLU(),
        nn.Conv2d(12, 1, 5, padding=2, padding_mode="reflect"),
    )  # fmt: skip
    adam = torch.optim.Adam(net.parameters(), lr=2e-3)
    for _ in range(450):
        y, x = (int(rng.integers(n - 96)) for n in smooth.shape)
        part = (..., slice(y, y + 96), slice(x, x + 96))
        loss = (net((pool[part] - low) / span) - (clean[part] - low) / span).square().mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
    with torch.no_grad():
        return (net((torch.from_numpy(noisy)[None, None] - low) / span) * span + low)[0, 0].numpy()


def on_draws(noisy: np.ndarray, run: Run, steps: int, seed: int) -> DirectDenoiser:
    """The student of a run after so many steps on 8 draws of each whole image, which cost as much as drawing
    600 times for 4 patches of 64 px but let it learn from all 8 at once, and from larger patches at the rate
    that suits a network from scratch: the shipped weights were made for other noise."""
    settings: dict[str, Any] = dict(steps=0, refine_steps=steps, init="none", validate_every=50)
    settings |= dict(batch_size=2, patch_size=128, student_lr=1.5e-3, seed=seed)
    cached = cache_draws(run, noisy, run.path / "draws", draws=8)
    return train(noisy, cached, run.denoiser.backbone, L2(), run.path / "student", **settings).denoiser


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("kind", choices=["lines", "g", "r"])
    parser.add_argument("--steps", type=int, default=300, help="of both networks, for samplers from scratch")
    parser.add_argument("--refine-steps", type=int, default=600, help="of their student alone")
    parser.add_argument("--draws", type=int, nargs="+", default=[1, 10, 100])
    parser.add_argument("--samplers", nargs="+")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()

    if options.kind == "lines":
        cells = specimen(noise="lines")
        noisy, clean, window = cells.noisy, cells.clean, (1, 9)
        context: Context = "row"
        white = GaussianNoise(gain=cells.gain, offset=cells.offset)
        noise, level = noisy[:4] - clean[:4], clean[:4]
    else:
        folder = Path(os.environ["DISTILL_TEST_DATA"])
        noisy = tifffile.imread(folder / f"widefield_bpae_{options.kind}_noisy.tif").astype(np.float32)
        mean = tifffile.imread(folder / f"widefield_bpae_{options.kind}_mean50.tif").astype(np.float32)
        clean, window = np.broadcast_to(mean, noisy.shape), (3, 3)
        context = "image"
        level = np.broadcast_to(noisy.mean(0), noisy.shape)
        noise = (noisy - level) * np.sqrt(len(noisy) / (len(noisy) - 1))
        white = GaussianNoise(float(noise.std()))

    fitted, around = (torch.from_numpy(np.array(v))[:, None] for v in (noise, level))
    sizes: dict[str, Any] = dict(levels=6, latents=16, filters=32, blocks=2, dropout=0.0)
    samplers: dict[str, Callable[[], PosteriorSampler]] = {
        "noise estimated": StabilizedSampler,
        "noise model fitted": lambda: StabilizedSampler(CorrelatedNoise.from_noise(fitted, around)),
        "HDN": lambda: HDN(white, **sizes),
        "HDN3-6": lambda: HDN(white, active_levels=range(3, 7), kl_warmup=options.steps // 2, **sizes),
        "StructuredNoiseVAE": lambda: StructuredNoiseVAE(
            AutoregressiveNoise.fit(torch.from_numpy(noise), context, steps=500), **sizes
        ),
        "JointNoiseVAE": lambda: JointNoiseVAE(code=32, **sizes),
    }
    index = spread(len(noisy), 1)[0]
    image, truth = noisy[index], np.array(clean[index])
    true_noise = uniform_filter(image - truth, window)  # pyright: ignore[reportArgumentType]  # a size per axis
    batch, target = (torch.from_numpy(v)[None, None] for v in (image, truth))
    pictures = {"noisy": image}

    def tell(name: str, sampler: PosteriorSampler | None, answer: np.ndarray) -> None:
        means = [posterior_mean(sampler, batch, n) for n in options.draws] if sampler else []
        draws = "".join(f"{psnr(mean, target):10.2f}" for mean in means) or " " * 10 * len(options.draws)
        score = psnr(torch.from_numpy(answer).float()[None, None], target)
        left = ((answer - truth) * true_noise).mean() / (true_noise**2).mean()
        pictures[f"{name}\n{score:.2f} dB, noise left {left:.2f}"] = answer
        print(f"{name:24}{psnr(batch, target):8.2f}{draws}{score:9.2f}{left:13.2f}", flush=True)

    columns = "".join(f"{n:>4} draws" for n in options.draws)
    print(f"{'':24}{'input':>8}{columns}{'student':>9}   noise left")
    found = rivals(image, truth, noise)
    smooth = next(answer for name, answer in found.items() if name.startswith("median"))
    found["FM2S-like"] = fm2s_like(image, smooth, CorrelatedNoise.from_noise(fitted, around))
    for name, answer in found.items():
        tell(name, None, answer)
    if options.kind == "lines":
        pairs = second_images("specimen", noise="lines")
    else:
        one, other = zip(*itertools.permutations(noisy, 2), strict=True)
        pairs = np.stack(one), np.stack(other)
    best = ceiling(*pairs, options.seed, steps=400)
    with torch.no_grad():
        tell("ceiling", None, best(batch)[0, 0].numpy())
        first = pretrained_denoiser(as_stack(noisy))(batch)
    tell("shipped", pretrained_sampler(as_stack(noisy)), first[0, 0].numpy())
    for name in options.samplers or samplers:
        torch.manual_seed(options.seed)
        folder, student = f"runs/structured/{options.kind}/{name}/{options.seed}", StabilizedUNet()
        if name.startswith("noise"):
            run = train(noisy, samplers[name](), student, L2(), folder, steps=0, refine_steps=200,
                        validate_every=50, seed=options.seed)  # fmt: skip
            denoiser = run.denoiser
        else:
            run = train(noisy, samplers[name](), student, L2(), folder, steps=options.steps, refine_steps=0,
                        batch_size=4, validate_every=50, seed=options.seed)  # fmt: skip
            denoiser = on_draws(noisy, run, options.refine_steps, options.seed)
        with torch.no_grad():
            tell(name, run.sampler, denoiser(batch)[0, 0].numpy())
    comparison(Path(f"runs/structured/{options.kind}/students.png"), {**pictures, "truth": truth})


if __name__ == "__main__":
    main()
