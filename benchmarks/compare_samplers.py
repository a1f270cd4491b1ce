"""Compares samplers at equal time of one core, and with a posterior in closed form.

    DISTILL_TEST_DATA=... python benchmarks/compare_samplers.py confocal --minutes 0 5 --draws 1 10 100
    python benchmarks/compare_samplers.py specimen --minutes 0 5
    python benchmarks/compare_samplers.py field pixels --minutes 5

It shows the PSNR of draws, of their means and of a student, after training both networks on the noisy
frames of FOV 1 alone (FOV 19 is never used) or on the built-in specimen. The student of HDN learns from its
draws, that of StabilizedSampler as by default. dispersion: MSE(1) / MSE(infinitely many), 2 for draws of
the posterior; the noise of the mean of 50 repeats, the ground truth of FOV 1, is subtracted. Draws side by
side are written to runs/samplers. field: a Gaussian field with Gaussian noise, whose posterior is known;
root mean square errors of mean, std and quantiles, in % of the posterior's std. pixels: the same for
independent pixels with a skewed and a bimodal prior, beside the posteriors under the prior that makes the
same noisy pixels likeliest. The shipped spread network was trained on images and stays fixed; --init none
trains both networks from random weights.
"""

import argparse
import copy
import math
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from quality import Case, built_in, confocal
from torch import nn

from distill import Run, psnr, train
from distill.hardware import keep_freed_memory
from distill.images.sources import as_stack
from distill.plots.pictures import comparison
from distill.prediction.pretrained import pretrained_denoiser
from losses import L2
from samplers import HDN, LIGHT, GaussianNoise, LinearGaussianField, PosteriorSampler, StabilizedSampler
from students import StabilizedUNet, UNet

NAMES = ["HDN", "StabilizedSampler"]
Noise = GaussianNoise | None
Pictures = dict[str, np.ndarray]


def make(name: str, noise: Noise) -> PosteriorSampler:
    return HDN(noise, **LIGHT) if name == "HDN" else StabilizedSampler(noise)


def trained(
    name: str,
    student: nn.Module,
    noise: Noise,
    images: np.ndarray,
    minutes: float,
    seed: int,
    init: str = "pretrained",
) -> tuple[Run, float]:
    """Co-trained -> the run, CPU seconds."""
    share = 0.0 if name == "HDN" else None  # HDN's student learns from its draws

    def run(steps: int) -> tuple[Run, float]:
        torch.manual_seed(seed)
        sampler, started = make(name, noise), time.process_time()
        run = train(images, sampler, copy.deepcopy(student), L2(), tempfile.mkdtemp(), steps=steps,
                    refine_steps=0, batch_size=8, seed=seed, validate_every=10**6, init=init,
                    self_supervised=share)  # fmt: skip
        return run, time.process_time() - started

    run(1)  # warms up
    once, often = run(1)[1], run(21)[1]
    return run(max(1, round((60 * minutes - once) / (often - once) * 20)))


def untrained(noise: Noise, noisy: torch.Tensor) -> StabilizedSampler:
    sampler = StabilizedSampler(noise)
    sampler.prepare(noisy, noisy.mean().view(1, 1, 1), noisy.std().view(1, 1, 1))
    sampler.load_pretrained()
    return sampler


@torch.no_grad()
def report(
    label: str, sampler: PosteriorSampler, student: nn.Module, case: Case, numbers: list[int], repeats: int
) -> Pictures:
    """Prints a line -> pictures of two draws, the mean of all and the student's answer."""
    name, noisy, clean, _ = case
    torch.manual_seed(0)
    mean, square, started, scores = torch.zeros_like(clean), torch.zeros_like(clean), time.process_time(), {}
    first, shown = torch.zeros(()), []
    for i, draw in enumerate(sampler.draws(noisy, max(numbers)), start=1):
        shown = [*shown, draw][:2]
        mean, square = mean + draw, square + draw.square()
        first = first + (draw - clean).square().mean()
        if i in numbers:
            scores[i] = psnr(mean / i, clean)
    n = max(numbers)
    per_draw = (time.process_time() - started) / n
    own = (noisy - clean).square().mean() / (repeats - 1) if repeats else 0.0  # noise of the truth
    variance = (square / n - (mean / n).square()).mean() * n / (n - 1)
    many = (mean / n - clean).square().mean() - variance / n
    dispersion = (first / n - own) / (many - own)
    answer = student(noisy)
    figures = "".join(f"{n:8d}: {score:6.2f}" for n, score in scores.items())
    figures += f"   student: {psnr(answer, clean):6.2f}   dispersion {dispersion:.2f}"
    print(f"{label:28}{name:10}{figures}   {per_draw:.3f} s a draw", flush=True)
    titles = ["a draw", "another draw", f"{n} draws", "student"]
    pictures = zip(titles, [*shown, mean / n, answer], strict=True)
    return {f"{label}\n{title}": image[0, 0].numpy() for title, image in pictures}


def images_of(what: str, only: list[str], minutes: list[float], numbers: list[int], seed: int) -> None:
    images, cases = confocal() if what == "confocal" else built_in()
    repeats = 50 if what == "confocal" else 0
    noise = cases[0][3] if what == "specimen" else None
    pictures: list[Pictures] = [{"noisy": case[1][0, 0].numpy()} for case in cases]
    for each in minutes:
        for name in only:
            if not each and name == "HDN":
                continue
            run, cpu = trained(name, StabilizedUNet(), noise, images, each, seed) if each else (None, 0.0)
            for case, shown in zip(cases, pictures, strict=True):
                sampler = run.sampler if run else untrained(noise, case[1])
                student = run.denoiser if run else pretrained_denoiser(as_stack(case[1][0, 0].numpy()))
                shown.update(report(f"{name}, {cpu / 60:.1f} min", sampler, student, case, numbers, repeats))
    folder = Path("runs/samplers")
    folder.mkdir(parents=True, exist_ok=True)
    for i, (case, shown) in enumerate(zip(cases, pictures, strict=True)):
        comparison(folder / f"{case[0]}_{i}.png", shown | {"truth": case[2][0, 0].numpy()})


class Pixels:
    """Independent pixels with a mixture of Gaussians as their prior, in Gaussian noise; raw counts.

    The posterior is a mixture, too: each Gaussian updated by the noisy value, with weights by its evidence.
    """

    def __init__(self, weights: list[float], means: list[float], stds: list[float], noise_std: float) -> None:
        self.weights, self.means, self.stds = (torch.tensor(v) for v in (weights, means, stds))
        self.noise_std = noise_std

    def prior(self, n: int, shape: tuple[int, int]) -> torch.Tensor:
        which = torch.multinomial(self.weights, n * math.prod(shape), replacement=True).view(n, 1, *shape)
        return self.means[which] + self.stds[which] * torch.randn(which.shape)

    def observe(self, signal: torch.Tensor) -> torch.Tensor:
        return signal + self.noise_std * torch.randn_like(signal)

    def _law(self, noisy: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Weights and means (*noisy.shape, K), and stds (K,), of the posterior's Gaussians."""
        total, noisy = self.stds**2 + self.noise_std**2, noisy[..., None]
        evidence = self.weights.log() - (noisy - self.means) ** 2 / total / 2 - total.log() / 2
        means = self.means + self.stds**2 / total * (noisy - self.means)
        return evidence.softmax(-1), means, self.stds * self.noise_std / total.sqrt()

    def posterior_mean(self, noisy: torch.Tensor) -> torch.Tensor:
        weights, means, _ = self._law(noisy)
        return (weights * means).sum(-1)

    def posterior_std(self, noisy: torch.Tensor) -> torch.Tensor:
        weights, means, stds = self._law(noisy)
        return ((weights * (means**2 + stds**2)).sum(-1) - self.posterior_mean(noisy) ** 2).sqrt()

    def quantile(self, noisy: torch.Tensor, q: float) -> tuple[torch.Tensor, torch.Tensor]:
        """The q-quantile by bisection, and the posterior's density there."""
        weights, means, stds = self._law(noisy)
        low, high = (means - 6 * stds).amin(-1), (means + 6 * stds).amax(-1)
        for _ in range(40):
            middle = (low + high) / 2
            below = (weights * torch.special.ndtr((middle[..., None] - means) / stds)).sum(-1) < q
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        z = (low[..., None] - means) / stds
        return low, (weights * (-(z**2) / 2).exp() / stds).sum(-1) / math.sqrt(2 * math.pi)

    @classmethod
    def likeliest(
        cls, noisy: torch.Tensor, noise_std: float, narrow: int = 150, rounds: int = 3000
    ) -> "Pixels":
        """The prior, of many narrow Gaussians, under which noisy pixels are likeliest.

        It is found by expectation maximisation (Kiefer & Wolfowitz 1956). No method can know more from these
        pixels, unless it assumes what the prior looks like.
        """
        low, high = float(noisy.min()), float(noisy.max())
        means, bins = torch.linspace(low, high, narrow), 4 * narrow
        std = (high - low) / narrow
        seen = low + (torch.arange(bins) + 0.5) * (high - low) / bins
        likely = (-((seen[:, None] - means) ** 2) / (std**2 + noise_std**2) / 2).exp()
        counts, weights = torch.histc(noisy, bins, low, high), torch.full((narrow,), 1 / narrow)
        for _ in range(rounds):
            weights = weights * (likely.T @ (counts / (likely @ weights))) / counts.sum()
        return cls(weights.clamp(min=1e-30).tolist(), means.tolist(), [std] * narrow, noise_std)


class Field(LinearGaussianField):
    """The Gaussian field, with the quantiles of its posterior."""

    def quantile(self, noisy: torch.Tensor, q: float) -> tuple[torch.Tensor, torch.Tensor]:
        z = math.sqrt(2) * float(torch.erfinv(torch.tensor(2 * q - 1)))
        std = self.posterior_std(noisy)
        return self.posterior_mean(noisy) + z * std, math.exp(-(z**2) / 2) / math.sqrt(2 * math.pi) / std


CLOSED: dict[str, list[tuple[str, Field | Pixels]]] = {
    "field": [("field", Field())],
    "pixels": [
        ("skewed", Pixels([0.6, 0.3, 0.1], [80.0, 110.0, 150.0], [8.0, 14.0, 22.0], 20.0)),
        ("bimodal", Pixels([0.6, 0.4], [80.0, 120.0], [5.0, 5.0], 15.0)),
    ],
}


QUANTILES = 0.05, 0.5, 0.95


@torch.no_grad()
def closed(
    label: str, truth: Field | Pixels, only: list[str], minutes: list[float], seed: int, init: str
) -> None:
    torch.manual_seed(seed)
    images, noisy = truth.observe(truth.prior(64, (128, 128))), truth.observe(truth.prior(4, (128, 128)))
    if isinstance(truth, Pixels):
        best = Pixels.likeliest(images, truth.noise_std)
        found = [best.posterior_mean(noisy), best.posterior_std(noisy)]
        found += [best.quantile(noisy, q)[0] for q in QUANTILES]
        errors(f"{label}, likeliest prior", truth, noisy, found)
    for each in minutes:
        for name in only:
            noise = GaussianNoise(truth.noise_std)
            if each:
                with torch.enable_grad():
                    student = UNet(depth=2, filters=4)  # costs next to nothing
                    run, cpu = trained(name, student, noise, images.numpy(), each, seed, init)
                    sampler = run.sampler
            elif name == "HDN":
                continue
            else:
                sampler, cpu = untrained(noise, noisy), 0.0
            drawn = torch.stack(list(sampler.draws(noisy, 400)))
            found = [drawn.mean(0), drawn.std(0), *(drawn.quantile(q, dim=0) for q in QUANTILES)]
            errors(f"{label}, {name}, {cpu / 60:.1f} min", truth, noisy, found, len(drawn))


def errors(
    label: str, truth: Field | Pixels, noisy: torch.Tensor, found: list[torch.Tensor], draws: float = math.inf
) -> None:
    """Prints those of mean, std and QUANTILES, in % of the posterior's std, without what comes from the
    finite number of draws."""
    std = truth.posterior_std(noisy)
    exact = [(truth.posterior_mean(noisy), std**2 / draws), (std, std**2 / (2 * draws))]
    for q in QUANTILES:
        value, density = truth.quantile(noisy, q)
        exact.append((value, q * (1 - q) / density**2 / draws))
    rows = [
        100 * math.sqrt(max(0.0, float((((own - value) ** 2 - scatter) / std**2).mean())))
        for own, (value, scatter) in zip(found, exact, strict=True)
    ]
    names = ["mean", "std", *(f"q{100 * q:02.0f}" for q in QUANTILES)]
    figures = "  ".join(f"{name} {row:.1f} %" for name, row in zip(names, rows, strict=True))
    ratio = float(found[1].square().mean().sqrt() / std.square().mean().sqrt())
    print(f"{label:38}{figures}   std / exact {ratio:.3f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", nargs="+", choices=["confocal", "specimen", *CLOSED])
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--minutes", type=float, nargs="+", default=[0, 5])
    parser.add_argument("--draws", type=int, nargs="+", default=[1, 10, 100])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--init", choices=["pretrained", "none"], default="pretrained", help="field, pixels")
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    for what in options.what:
        for label, truth in CLOSED.get(what, []):
            closed(label, truth, options.only, options.minutes, options.seed, options.init)
        if what not in CLOSED:
            images_of(what, options.only, options.minutes, options.draws, options.seed)


if __name__ == "__main__":
    main()
