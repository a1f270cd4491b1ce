"""Noise that spills into neighbouring pixels: what it costs to split light as if pixels were independent.

python benchmarks/crosstalk.py [--along_x 0.05 0.12]

The built-in specimen with photon noise whose neighbours along x are so correlated, mean of two images. The
student learned for a minute from the images alone. BM3D (`pip install bm3d`, not for commercial use) in the
Anscombe domain knows the noise line, but takes the noise for white.
"""

import argparse
import tempfile

import numpy as np
import torch
from quality import bm3d_anscombe

from distill import psnr, specimen, train
from distill.hardware import keep_freed_memory
from losses import L2
from samplers import PhotonNoise, StabilizedSampler
from samplers.noise import split
from samplers.noise.crosstalk import CrosstalkNoise
from students import StabilizedUNet

FRAMES = [5, 15]
READ_NOISE = 3.5  # raw counts, as estimated for the built-in specimen


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--along_x", type=float, nargs="+", default=[0.05, 0.12])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    cells = specimen()
    clean = torch.from_numpy(cells.clean)[:, None].float()
    white = PhotonNoise(cells.gain, cells.offset, READ_NOISE)
    for along_x in options.along_x:
        torch.manual_seed(0)
        noisy = CrosstalkNoise(white, 0.0, along_x).sample(clean)
        made = [bm3d_anscombe(noisy[i, 0].numpy(), cells.gain, cells.offset)["exact"] for i in FRAMES]
        tell(along_x, "BM3D", torch.from_numpy(np.stack(made))[:, None].float(), clean[FRAMES])
        for seed in options.seeds:
            for name, least in (("as if independent", 1.0), ("before the spill", 0.0)):
                split.WORTH = least
                torch.manual_seed(seed)
                run = train(noisy.numpy(), StabilizedSampler(), StabilizedUNet(), L2(), tempfile.mkdtemp(),
                            steps=40, refine_steps=360, seed=seed)  # fmt: skip
                with torch.no_grad():
                    tell(along_x, f"split {name}, seed {seed}", run.denoiser(noisy[FRAMES]), clean[FRAMES])


def tell(along_x: float, name: str, answers: torch.Tensor, clean: torch.Tensor) -> None:
    scores = [psnr(answer[None], truth[None]) for answer, truth in zip(answers, clean, strict=True)]
    print(f"correlation {along_x}   {name:32}{np.mean(scores):.2f} dB", flush=True)


if __name__ == "__main__":
    main()
