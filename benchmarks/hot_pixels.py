"""The shipped weights and BM3D on images with hot and dead pixels (a minute of one core).

    DISTILL_TEST_DATA=... python benchmarks/hot_pixels.py

Middle frames of FOV 1 and FOV 19, without training, and two of the built-in specimen, one seed: as they are,
and with so many single pixels at random brightness, of dead ones and of pairs. BM3D is told the noise line of
the image as it is; it gets the image itself, and with each pixel that a 3 x 3 median would change by 8
standard deviations of the noise replaced by it.
"""

import numpy as np
import torch
from quality import Case, bm3d_anscombe, built_in, confocal
from scipy.ndimage import median_filter

from distill import psnr
from distill.images.sources import as_stack
from distill.prediction.pretrained import pretrained_denoiser

HOT, DEAD, PAIRS = 40, 20, 5


def broken(image: np.ndarray) -> np.ndarray:
    """Image (H, W) with hot pixels between its brightest value and twice of it, and dead ones of 0."""
    rng, image = np.random.default_rng(0), image.copy()
    rows, columns = (rng.integers(0, side - 1, HOT + DEAD + PAIRS) for side in image.shape)
    values = image.max() * rng.uniform(1, 2, HOT + DEAD + PAIRS)
    values[HOT : HOT + DEAD] = 0
    image[rows, columns] = values
    image[rows[-PAIRS:], columns[-PAIRS:] + 1] = values[-PAIRS:]
    return image


@torch.no_grad()
def report(case: Case) -> None:
    name, noisy, clean, line = case
    gain, offset = float(line.gain or 0), float(line.offset or 0)
    plain = noisy[0, 0].numpy()
    for label, image in (("as it is", plain), ("hot and dead", broken(plain))):
        smooth = median_filter(image, 3)
        outlier = abs(image - smooth) > 8 * np.sqrt(np.maximum(gain * smooth + offset, 0))
        answers = {"noisy": image}
        for rival, given in (("BM3D", image), ("BM3D after median", np.where(outlier, smooth, image))):
            answers[rival] = bm3d_anscombe(given, gain, offset)["exact"]
        student = pretrained_denoiser(as_stack(image))
        answers["ours"] = student(torch.from_numpy(image)[None, None])[0, 0].numpy()
        scores = {key: psnr(torch.from_numpy(v)[None, None], clean) for key, v in answers.items()}
        figures = "".join(f"  {key} {score:.2f}" for key, score in scores.items())
        print(f"{name:10}{label:14}{figures}", flush=True)


def main() -> None:
    torch.set_num_threads(1)
    for case in (*confocal()[1], *built_in()[1]):
        report(case)


if __name__ == "__main__":
    main()
