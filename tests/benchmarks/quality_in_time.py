"""PSNR that a budget of seconds buys on this machine: twenty 256x256 cells, Gaussian noise, sigma 25.

    python tests/benchmarks/quality_in_time.py --seconds 90 [--name=value of train, HDN or UNet ...]

Reduced networks (HDN: 4 levels, 16 latents, 2 blocks, 32 filters; U-Net: 16 filters). Trains on all
twenty noisy images, reports on the first four: input, means of 10 and 100 draws, student.
"""

import argparse
import shutil
import tempfile
import time

import torch

from distill.datasets import specimen
from distill.engine import PUBLISHED, train
from distill.evaluate import compare, format_table
from losses import L2
from samplers import GaussianNoise
from samplers.hdn import HDN
from students import UNet

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--seconds", type=float, default=90)
parser.add_argument("--refine", type=float, default=0.25, help="share of the time for refinement")
parser.add_argument("--published", action="store_true", help="the published settings")
parser.add_argument("--dropout", type=float, default=0.0)
parser.add_argument("--shared", action="store_true")
parser.add_argument("--draws", type=int, nargs="*", default=[10, 100])
parser.add_argument("--set", nargs="*", default=[], help="more arguments of train: name=value")
options = parser.parse_args()

data = specimen(20, 256, noise="gaussian", sigma=25)
settings = dict(PUBLISHED) if options.published else {}
settings |= {k: eval(v) for k, v in (pair.split("=") for pair in options.set)}


def run(steps, refine_steps, out):
    torch.manual_seed(0)
    hdn = HDN(GaussianNoise(25.0), levels=4, latents=16, filters=32, blocks=2, dropout=options.dropout)
    unet = UNet(filters=16, shared_convs=options.shared)
    settings.update(steps=steps, refine_steps=refine_steps, validate_every=10**6, val_fraction=0.05)
    return train(data.noisy, hdn, unet, L2(), out, **settings)


def timed(steps, refine_steps):
    out, started = tempfile.mkdtemp(), time.monotonic()
    result = run(steps, refine_steps, out)
    shutil.rmtree(out)
    return result, time.monotonic() - started


overhead = timed(1, 0)[1]
co_step = (timed(11, 0)[1] - overhead) / 10
refine_step = (timed(1, 10)[1] - overhead) / 10
share = 0.0 if options.published else options.refine
steps = int(options.seconds * (1 - share) / co_step)
refine_steps = int(options.seconds * share / refine_step)
trained, seconds = timed(steps, refine_steps)
pairs = [
    (torch.from_numpy(n)[None].float(), torch.from_numpy(c)[None])
    for n, c in zip(data.noisy[:4], data.clean[:4])
]
rows, _ = compare(trained.sampler, trained.denoiser, pairs, options.draws, torch.device("cpu"))
print(f"{options} | {steps} + {refine_steps} steps of {co_step:.2f} and {refine_step:.2f} s, {seconds:.0f} s")
print(format_table(rows), flush=True)
