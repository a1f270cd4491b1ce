"""Flow matching on pairs of noisy and clean images, and a student that needs one pass for their mean.

python recipes/flow_unet_l2.py                        the built-in specimen: 5 minutes
python recipes/flow_unet_l2.py noisy.tif clean.tif    your pairs, one clean image for each noisy one

The student is tested on pairs that were held out, where there are enough: the last two.
"""

import sys

import numpy as np
import torch

from distill import evaluate, predict, read, report, specimen, train
from distill.evaluation.tables import format_table
from distill.hardware import keep_freed_memory
from losses import L2
from samplers import FlowMatching, WithTime
from students import LightUNet


def main(out: str, noisy: str | None = None, clean: str | None = None, *, steps: int = 1000) -> None:
    if noisy and clean:
        images, truth = (np.asarray(read(path).frames)[:, 0] for path in (noisy, clean))
    else:
        cells = specimen()
        images, truth = cells.noisy, cells.clean
    known, test = slice(-2) if len(images) > 4 else slice(None), slice(-2, None)

    # Any network of (x_t, t, noisy) is a velocity; WithTime makes one of a network of images. One that was
    # trained elsewhere needs no clean images: FlowMatching(velocity, mean=..., std=...), and steps=0 below.
    torch.manual_seed(0)
    velocity = WithTime(LightUNet(3, 1, width=32, depth=3))
    sampler = FlowMatching(velocity, clean=truth[known], steps=10)
    run = train(images[known], sampler, LightUNet(), L2(), out, steps=steps, refine_steps=steps // 3,
                batch_size=4)  # fmt: skip

    predict(run, images, f"{out}/denoised.tif", overwrite=True)
    print(format_table(evaluate(run, images[test], truth[test], draws=(1, 10))))
    print(f"student, denoised images, pictures and tables: {report(run)}")


if __name__ == "__main__":
    keep_freed_memory()
    main("runs/flow_unet_l2", *sys.argv[1:])
