"""Flow matching on pairs of noisy and clean images, and a student that needs one pass for their mean.

python recipes/flow_unet_l2.py                        the built-in specimen: 3 minutes
python recipes/flow_unet_l2.py noisy.tif clean.tif    your pairs, one clean image for each noisy one

With more than four pairs, the last two are held out for the table.
"""

import sys
from pathlib import Path

import numpy as np
import torch

from distill import evaluate, keep_freed_memory, predict, read, report, specimen, train
from losses import L2
from samplers import FlowMatching, WithTime
from students import LightUNet


def main(noisy=None, clean=None, *, out: str = "runs/flow_unet_l2", steps: int = 1000) -> None:
    if noisy and clean:
        images, truth = (np.asarray(read(path).frames, np.float32)[:, 0] for path in (noisy, clean))
    else:
        cells = specimen()
        images, truth = cells.noisy.astype(np.float32), cells.clean
    known, test = slice(-2) if len(images) > 4 else slice(None), slice(-2, None)
    pairs = np.stack([images[known], truth[known]], axis=1)  # (N, 2, Y, X)

    # Trains the sampler alone: patches, squared error, Adam. A velocity that was trained elsewhere can be
    # used instead, without this training.
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    velocity = WithTime(LightUNet(3, 1))
    mean, std = float(images[known].mean()), float(images[known].std())
    sampler = FlowMatching(velocity, mean=mean, std=std, steps=10).to(device)
    optimizer = torch.optim.Adam(sampler.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        y, x = (torch.randint(n - 63, ()).item() for n in pairs.shape[2:])
        patches = torch.from_numpy(pairs[torch.randint(len(pairs), (4,)), :, y : y + 64, x : x + 64])
        optimizer.zero_grad()
        sampler.squared_error(patches.to(device)).backward()
        optimizer.step()
        schedule.step()

    # Frozen (steps=0). FlowMatching(velocity, clean=truth) would be trained together with the student.
    run = train(images[known], sampler, LightUNet(), L2(), out, steps=0, refine_steps=steps // 4,
                batch_size=4)  # fmt: skip

    predict(run, images, f"{out}/denoised.tif", overwrite=True)
    evaluate(run, images[test], truth[test], draws=(1, 10))
    print(Path(out, "evaluation.md").read_text(encoding="utf-8"))
    print(f"student, denoised images, pictures and tables: {report(run)}")


if __name__ == "__main__":
    keep_freed_memory()
    main(*sys.argv[1:])
