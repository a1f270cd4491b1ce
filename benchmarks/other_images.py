"""Images of other kinds than those of quality.py: photographs, tissue sections and cells of scikit-image.

    python benchmarks/other_images.py
    python benchmarks/other_images.py --photons 5 20 100 --minutes 0
    python benchmarks/other_images.py --only brick cell --minutes 3 10

Photon and read noise is added to the upper left 384 x 384 px of each; `--photons` is the expected number at
the brightest pixels. BM3D (`pip install bm3d`, not for commercial use) knows the noise line, ours estimates
it from the image. 0 minutes: the shipped weights; else a training on this one image. PSNR of one noisy image
each.
"""

import argparse
import tempfile
from collections.abc import Iterator

import numpy as np
import torch
from quality import bm3d_anscombe
from skimage import data

from distill import DirectDenoiser, psnr, train
from distill.hardware import keep_freed_memory
from distill.images.sources import as_stack
from distill.prediction.pretrained import pretrained_denoiser
from losses import L2
from samplers import StabilizedSampler
from students import StabilizedUNet

NAMES = ("camera", "coins", "moon", "brick", "grass", "cell", "immunohistochemistry", "hubble_deep_field")
SIDE, GAIN, BLACK, READ = 384, 10.0, 20.0, 5.0  # px, counts per photon, counts, counts


def images(names: list[str], photons: float) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """(name, noisy, clean), in counts."""
    for name in names:
        image = getattr(data, name)()
        image = (image if image.ndim == 2 else image[..., 1])[:SIDE, :SIDE].astype(float)
        expected = photons * image / np.percentile(image, 99.9)
        rng = np.random.default_rng(NAMES.index(name))
        noisy = GAIN * rng.poisson(expected) + BLACK + rng.normal(0, READ, expected.shape)
        yield name, noisy.astype("f4"), (GAIN * expected + BLACK).astype("f4")


def denoiser_of(noisy: np.ndarray, minutes: float) -> DirectDenoiser:
    if not minutes:
        return pretrained_denoiser(as_stack(noisy))
    torch.manual_seed(0)
    return train(noisy, StabilizedSampler(), StabilizedUNet(), L2(), tempfile.mkdtemp(),
                 budget=f"{minutes}min").denoiser  # fmt: skip


@torch.no_grad()
def answer(denoiser: DirectDenoiser, noisy: np.ndarray) -> np.ndarray:
    return denoiser(torch.from_numpy(noisy)[None, None])[0, 0].numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--photons", type=float, nargs="+", default=[20])
    parser.add_argument("--minutes", type=float, nargs="+", default=[0, 3])
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    head = ["image", "photons", "noisy", "BM3D", *(f"{m:g} min" for m in options.minutes)]
    print("| " + " | ".join(head) + " |", "|" + "---|" * len(head), sep="\n", flush=True)
    found = []
    for photons in options.photons:
        for name, noisy, clean in images(options.only, photons):
            bm3d = bm3d_anscombe(noisy, GAIN, READ**2 - GAIN * BLACK)["exact"].astype("f4")
            answers = [noisy, bm3d, *(answer(denoiser_of(noisy, m), noisy) for m in options.minutes)]
            found.append([psnr(*map(torch.from_numpy, (each, clean))) for each in answers])
            print(f"| {name} | {photons:g} | " + " | ".join(f"{v:.2f}" for v in found[-1]) + " |", flush=True)
    print("| mean | | " + " | ".join(f"{v:.2f}" for v in np.mean(found, axis=0)) + " |")


if __name__ == "__main__":
    main()
