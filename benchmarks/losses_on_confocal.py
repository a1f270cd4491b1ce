"""Every loss's student of one sampler trained on real noisy images, from the same cached draws.

    DISTILL_TEST_DATA=... python benchmarks/table1.py confocal      trains the sampler
    DISTILL_TEST_DATA=... python benchmarks/losses_on_confocal.py [--steps N]

Confocal BPAE, FOV 1 is trained on, FOV 19 is not. Prints PSNR, SSIM and the distance of pretrained
features (lower is better) on FOV 19's middle frame; each std map against the sampler's own std of
100 draws; the coverage of 90 % intervals on FOV 19 before and after calibration on FOV 1. Writes
runs/losses/students.png and std.png.
"""

import argparse
from pathlib import Path

import numpy as np
import tifffile
import torch
from cached_confocal import TEACHER, images_and_draws, stack

from distill import calibrate, load_sampler, predict, psnr, train
from distill.evaluation.metrics import ssim
from distill.evaluation.pairs import paired
from distill.hardware import keep_freed_memory
from distill.plots.pictures import comparison
from losses import L1, L2, EnergyScore, Features, Huber, MeanVariance, Quantiles, Tukey, WeightedSum
from samplers import OnePassSampler, posterior_mean, posterior_std
from students import NoiseConditioned, UNet

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--teacher", default=TEACHER, help="folder of a run with the sampler")
parser.add_argument("--steps", type=int, default=1000)
options = parser.parse_args()
keep_freed_memory()
out, fov1, fov19 = Path("runs/losses"), stack("fov1"), stack("fov19")
some, cached = images_and_draws(options.teacher)

losses = {
    "L2": L2(), "L1": L1(), "Huber": Huber(), "Tukey": Tukey(c=2.0), "Quantiles": Quantiles(),
    "MeanVariance": MeanVariance(), "L1 + features": WeightedSum([L1(), Features()], [1.0, 0.1]),
}  # fmt: skip
settings = dict(steps=options.steps, refine_steps=0, batch_size=4, micro_batch=4)
((noisy, clean),) = paired(*fov19, frames=1)
features = Features()
features.prepare((torch.from_numpy(some.astype(np.float32)) - some.mean()) / some.std())
pictures = {}


def standardized(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy((image - some.mean()) / some.std()).float()[None, None]


def report(name: str, image: np.ndarray) -> None:
    found = torch.from_numpy(image)[None]
    score, similarity = psnr(found, clean), ssim(found, clean)
    with torch.no_grad():
        distance = float(features(standardized(image), standardized(clean[0].numpy())[None]))
    print(f"{name:20}{score:9.2f} dB{similarity:9.4f}{distance:11.4f}", flush=True)
    pictures[f"{name}\n{score:.2f} dB"] = image


print(f"{'FOV 19':20}{'PSNR':>12}{'SSIM':>9}{'features':>11}")
report("noisy", noisy[0].numpy())
sampler = load_sampler(options.teacher)
mean, std = (f(sampler, noisy[None], 100)[0, 0].numpy() for f in (posterior_mean, posterior_std))
report("100 draws", mean)
for name, loss in losses.items():
    torch.manual_seed(0)
    student = UNet(out_channels=len(loss.outputs), filters=16)
    train(some, cached, student, loss, out / name, **settings)
    report(name, predict(out / name, noisy.numpy(), out / name / "denoised.tif", overwrite=True)[0])

torch.manual_seed(0)
one_pass = NoiseConditioned(UNet(in_channels=7, filters=16))
run = train(some, cached, one_pass, EnergyScore(), out / "one pass", **settings)
draws = OnePassSampler(run.denoiser)
drawn = [f(draws, noisy[None], 100)[0, 0].numpy() for f in (posterior_mean, posterior_std)]
report("one-pass sampler", drawn[0])
comparison(out / "students.png", pictures | {"truth": clean[0].numpy()})
to_teacher = psnr(torch.from_numpy(drawn[0]), torch.from_numpy(mean))
print(f"one-pass sampler's mean against that of the sampler's 100 draws: {to_teacher:.2f} dB")

print("\nstd maps against the sampler's own of 100 draws: correlation, slope")
maps = {
    "MeanVariance": tifffile.imread(out / "MeanVariance" / "denoised_std.tif").squeeze(),
    "one-pass sampler": drawn[1],
}
for name, image in maps.items():
    correlation, slope = np.corrcoef(image.ravel(), std.ravel())[0, 1], (image * std).sum() / (std**2).sum()
    print(f"{name:20}{correlation:9.3f}{slope:9.3f}")
comparison(out / "std.png", {"sampler, 100 draws": std} | maps | {"again": std})

print("\nshare of FOV 19's true pixels inside 90 % intervals, before and after calibration on FOV 1")
near_the_middle = slice(20, 30)  # the scene drifts over the 50 frames, whose mean is the truth
here, there = (
    (tifffile.imread(noisy)[near_the_middle], tifffile.imread(clean)) for noisy, clean in (fov1, fov19)
)
for name in ("Quantiles", "MeanVariance"):
    found = calibrate(out / name, *here, test_noisy=there[0], test_clean=there[1])
    print(f"{name:20}{found.before:9.1%}{found.after:9.1%}   factor {found.factor:.2f}")
