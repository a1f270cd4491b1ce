"""As stabilized_l2.py, with the 5 % and 95 % quantiles beside the median, all in one pass.

python recipes/stabilized_quantiles.py                        the built-in specimen
python recipes/stabilized_quantiles.py noisy.tif [clean.tif]  your images

They are quantiles of what the sampler believes. Calibration makes them hold the truth as often as they
say, on images with ground truth that were not trained on: here, other fields of the specimen.
"""

import sys

from distill import calibrate, predict, report, specimen
from distill.hardware import keep_freed_memory
from distill.images.sources import Images
from losses import Quantiles
from recipes import stabilized_l2


def main(out: str, noisy: Images | None = None, clean: Images | None = None, *, steps: int = 300) -> None:
    stabilized_l2.main(Quantiles(), out, noisy, clean, steps=steps)
    if noisy is None:
        other, test = specimen(4, seed=1), specimen(4, seed=2)
        found = calibrate(out, other.noisy, other.clean, test_noisy=test.noisy, test_clean=test.clean)
        print(f"{found.level:.0%} intervals held {found.before:.1%} of the truth, now {found.after:.1%}")
        predict(out, specimen().noisy, f"{out}/denoised.tif", overwrite=True)
        report(out)  # again, with the coverage of the intervals


if __name__ == "__main__":
    keep_freed_memory()
    main("runs/stabilized_quantiles", *sys.argv[1:])
