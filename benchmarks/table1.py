"""Table 1 and Figure 1 with 1 to 1000 draws: of the built-in specimen, and of real confocal images.

    python benchmarks/table1.py specimen                          8 min of training, 15 of draws
    DISTILL_TEST_DATA=... python benchmarks/table1.py confocal    26 min of training, 60 of draws

Times on one core. Confocal BPAE: trained on FOV 1's 50 noisy frames alone, with a noise variance that is
linear in the signal, estimated from them; FOV 19 is never seen. Their scenes drift over the 50 frames, so
the middle one is compared with their mean. Run it again to resume it. Writes into RUN/table1: table1.md
and .csv, and for each image evaluation.csv, .md, .png (Figure 3) and psnr_against_time.svg (Figure 1).
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
from recipes.hdn_unet_l2 import main as specimen_recipe
from samplers import HDN
from students import UNet

Data = Sequence[tuple[Images, Images | None]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("images", choices=["specimen", "confocal"])
    parser.add_argument("--draws", type=int, nargs="+", default=[1, 10, 100, 1000])
    options = parser.parse_args()
    keep_freed_memory()

    if options.images == "specimen":
        run, frames = Path("runs/hdn_unet_l2"), 2
        if not (run / "student.safetensors").exists():
            specimen_recipe(L2(), str(run))
        cells = specimen()
        pairs: Data = [(Stack(cells.noisy, "TYX", "specimen"), cells.clean)]
    else:
        run, frames, pairs = Path(TEACHER), 1, [stack("fov1"), stack("fov19")]
        torch.manual_seed(0)
        sampler = HDN(levels=4, latents=16, filters=32, blocks=2, dropout=0.0)
        train(pairs[0][0], sampler, UNet(filters=16), L2(), run, steps=1000, refine_steps=500, batch_size=4)

    evaluate_all([run], pairs, run / "table1", frames=frames, draws=options.draws)
    training_cost(run, pairs[0][0])
    print((run / "table1" / "table1.md").read_text())
    print(report(run))


if __name__ == "__main__":
    main()
