"""Compares students of all losses on real noisy images, from the same cached draws of one sampler.

    DISTILL_TEST_DATA=... python benchmarks/table1.py confocal      trains the sampler
    DISTILL_TEST_DATA=... python benchmarks/losses_on_confocal.py [--steps N]

Confocal BPAE: FOV 1 is used in training, FOV 19 is not. Prints PSNR, SSIM and the distance of pretrained
features (lower is better) on FOV 19's middle frame; each std map against the sampler's own std of
100 draws; the coverage of 90 % intervals on FOV 19 before and after calibration on FOV 1. Writes
runs/losses/students.png and std.png.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch
from cached_confocal import TEACHER, images_and_draws, stack
from torch import Tensor

from distill import calibrate, load_sampler, predict, psnr, train
from distill.evaluation.metrics import ssim
from distill.evaluation.pairs import paired
from distill.hardware import keep_freed_memory
from distill.plots.pictures import comparison
from losses import L1, L2, EnergyScore, Features, Huber, Loss, MeanVariance, Quantiles, Tukey, WeightedSum
from samplers import OnePassSampler, PosteriorSampler, posterior_mean, posterior_std
from students import NoiseConditioned, UNet

OUT, FOV1, FOV19 = Path("runs/losses"), stack("fov1"), stack("fov19")


class Judge:
    """Prints how far images (H, W) are from FOV 19's ground truth, and keeps them under their titles.

    images: those trained on, (N, 1, H, W): their mean and std standardize what the features see.
    """

    def __init__(self, images: np.ndarray, clean: Tensor) -> None:
        self.mean, self.std, self.clean = images.mean(), images.std(), clean
        self.features = Features()
        self.features.prepare((torch.from_numpy(images.astype(np.float32)) - self.mean) / self.std)
        self.pictures: dict[str, np.ndarray] = {}

    def report(self, name: str, image: np.ndarray) -> None:
        found = torch.from_numpy(image)[None]
        score, similarity = psnr(found, self.clean), ssim(found, self.clean)
        with torch.no_grad():
            truth = self._standardized(self.clean[0].numpy())
            distance = float(self.features(self._standardized(image), truth[None]))
        print(f"{name:20}{score:9.2f} dB{similarity:9.4f}{distance:11.4f}", flush=True)
        self.pictures[f"{name}\n{score:.2f} dB"] = image

    def _standardized(self, image: np.ndarray) -> Tensor:
        return torch.from_numpy((image - self.mean) / self.std).float()[None, None]


def moments(sampler: PosteriorSampler, noisy: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Mean and std of 100 draws of (1, H, W), each (H, W)."""
    mean, std = (f(sampler, noisy[None], 100)[0, 0].numpy() for f in (posterior_mean, posterior_std))
    return mean, std


def compare_stds(maps: dict[str, np.ndarray], std: np.ndarray) -> None:
    print("\nstd maps against the sampler's own of 100 draws: correlation, slope")
    for name, image in maps.items():
        correlation = np.corrcoef(image.ravel(), std.ravel())[0, 1]
        slope = (image * std).sum() / (std**2).sum()
        print(f"{name:20}{correlation:9.3f}{slope:9.3f}")
    comparison(OUT / "std.png", {"sampler, 100 draws": std} | maps | {"again": std})


def calibrate_intervals() -> None:
    print("\nshare of FOV 19's true pixels inside 90 % intervals, before and after calibration on FOV 1")
    near_the_middle = slice(20, 30)  # the scene drifts over the 50 frames, whose mean is the truth
    here, there = (
        (tifffile.imread(noisy)[near_the_middle], tifffile.imread(clean)) for noisy, clean in (FOV1, FOV19)
    )
    for name in ("Quantiles", "MeanVariance"):
        found = calibrate(OUT / name, *here, test_noisy=there[0], test_clean=there[1])
        print(f"{name:20}{found.before:9.1%}{found.after:9.1%}   factor {found.factor:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--teacher", default=TEACHER, help="folder of a run with the sampler")
    parser.add_argument("--steps", type=int, default=1000)
    options = parser.parse_args()
    keep_freed_memory()
    some, cached = images_and_draws(options.teacher)
    settings: dict[str, Any] = dict(steps=options.steps, refine_steps=0, batch_size=4, micro_batch=4)
    ((noisy, clean),) = paired(*FOV19, frames=1)
    judge = Judge(some, clean)

    print(f"{'FOV 19':20}{'PSNR':>12}{'SSIM':>9}{'features':>11}")
    judge.report("noisy", noisy[0].numpy())
    mean, std = moments(load_sampler(options.teacher), noisy)
    judge.report("100 draws", mean)
    losses: dict[str, Loss] = {
        "L2": L2(), "L1": L1(), "Huber": Huber(), "Tukey": Tukey(c=2.0), "Quantiles": Quantiles(),
        "MeanVariance": MeanVariance(), "L1 + features": WeightedSum([L1(), Features()], [1.0, 0.1]),
    }  # fmt: skip
    for name, loss in losses.items():
        torch.manual_seed(0)
        student, out = UNet(out_channels=len(loss.outputs), filters=16), OUT / name
        train(some, cached, student, loss, out, **settings)
        judge.report(name, predict(out, noisy.numpy(), out / "denoised.tif", overwrite=True)[0])

    torch.manual_seed(0)
    one_pass = NoiseConditioned(UNet(in_channels=7, filters=16))
    run = train(some, cached, one_pass, EnergyScore(), OUT / "one pass", **settings)
    drawn_mean, drawn_std = moments(OnePassSampler(run.denoiser), noisy)
    judge.report("one-pass sampler", drawn_mean)
    comparison(OUT / "students.png", judge.pictures | {"truth": clean[0].numpy()})
    to_teacher = psnr(torch.from_numpy(drawn_mean), torch.from_numpy(mean))
    print(f"one-pass sampler's mean against that of the sampler's 100 draws: {to_teacher:.2f} dB")

    predicted = tifffile.imread(OUT / "MeanVariance" / "denoised_std.tif").squeeze()
    compare_stds({"MeanVariance": predicted, "one-pass sampler": drawn_std}, std)
    calibrate_intervals()


if __name__ == "__main__":
    main()
