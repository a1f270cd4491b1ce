"""Table 1 and Figure 1 with 1 to 1000 draws: for the built-in specimen and real confocal images.

    python benchmarks/table1.py specimen
    DISTILL_TEST_DATA=... python benchmarks/table1.py confocal

5 minutes of training, as `distill train` does it by default, and 2 minutes of draws for each image, on one
core. Confocal BPAE: trained on FOV 1's 50 noisy frames alone; FOV 19 is never seen. Their scenes drift over
the 50 frames, so the middle one is compared with their mean. Run it again to resume it. Writes into
RUN/table1: table1.md and .csv, and for each image evaluation.csv, .md, .png (Figure 3) and
psnr_against_time.svg (Figure 1). quality.py has the rivals and the ceiling.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from cached_confocal import TEACHER, stack

from distill import evaluate_all, report, specimen, train, training_cost
from distill.hardware import keep_freed_memory
from distill.images.sources import Images
from distill.images.stack import Stack
from losses import L2
from samplers import GaussianNoise, StabilizedSampler
from students import StabilizedUNet

Data = Sequence[tuple[Images, Images | None]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("images", choices=["specimen", "confocal"])
    parser.add_argument("--draws", type=int, nargs="+", default=[1, 10, 100, 1000])
    options = parser.parse_args()
    keep_freed_memory()

    noise: GaussianNoise | None = None
    if options.images == "specimen":
        run, frames, cells = Path("runs/specimen"), 2, specimen()
        noise = GaussianNoise(gain=cells.gain, offset=cells.offset)
        pairs: Data = [(Stack(cells.noisy, "TYX", "specimen"), cells.clean)]
    else:
        run, frames, pairs = Path(TEACHER), 1, [stack("fov1"), stack("fov19")]
    torch.manual_seed(0)
    train(pairs[0][0], StabilizedSampler(noise), StabilizedUNet(), L2(), run, budget="5min")

    evaluate_all([run], pairs, run / "table1", frames=frames, draws=options.draws)
    training_cost(run, pairs[0][0])
    print((run / "table1" / "table1.md").read_text())
    print(report(run))


if __name__ == "__main__":
    main()
