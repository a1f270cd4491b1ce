"""PSNR that a budget of seconds buys on this machine: twenty 256x256 cells, Gaussian noise, sigma 25.

    python benchmarks/quality_in_time.py --steps 110 --refine-steps 90

Reduced networks (HDN: 4 levels, 16 latents, 2 blocks, 32 filters; U-Net: 16 filters). Trains on all
twenty noisy images, reports on the first four: input, means of 10 and 100 draws, student.
"""

import argparse
import sys
import tempfile
import time
from typing import Any

import torch

from distill.datasets import specimen
from distill.evaluation.compare import compare
from distill.evaluation.tables import format_table
from distill.hardware import Hardware, keep_freed_memory
from distill.training.engine import PUBLISHED, train
from losses import L2
from samplers import GaussianNoise
from samplers.hdn import HDN
from students import UNet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=110)
    parser.add_argument("--refine-steps", type=int, default=90)
    parser.add_argument("--published", action="store_true", help="the published settings")
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--shared", action="store_true")
    parser.add_argument("--draws", type=int, nargs="*", default=[10, 100])
    parser.add_argument("--images", type=int, default=4, help="how many to report on")
    parser.add_argument("--set", nargs="*", default=[], help="more arguments of train: name=value")
    options = parser.parse_args()
    keep_freed_memory()

    data = specimen(20, 256, noise="gaussian", sigma=25)
    settings: dict[str, Any] = dict(PUBLISHED) if options.published else {}
    settings |= {k: eval(v) for k, v in (pair.split("=") for pair in options.set)}

    settings |= dict(
        steps=options.steps, refine_steps=options.refine_steps, validate_every=10**6, val_fraction=0
    )

    started = time.monotonic()
    torch.manual_seed(0)
    hdn = HDN(GaussianNoise(25.0), levels=4, latents=16, filters=32, blocks=2, dropout=options.dropout)
    unet = UNet(filters=16, shared_convs=options.shared)
    trained = train(data.noisy, hdn, unet, L2(), tempfile.mkdtemp(), **settings)
    seconds = time.monotonic() - started
    pairs = [
        (torch.from_numpy(n)[None].float(), torch.from_numpy(c)[None])
        for n, c in zip(data.noisy[: options.images], data.clean[: options.images], strict=True)
    ]
    rows, _, _ = compare(trained.sampler, trained.denoiser, pairs, options.draws, Hardware("cpu"))
    print(f"{seconds:.0f} s: {' '.join(sys.argv[1:])}")
    print(format_table(rows), flush=True)


if __name__ == "__main__":
    main()
