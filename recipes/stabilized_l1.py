"""As stabilized_l2.py, with the absolute error: the student learns the pixel-wise median of the draws.

python recipes/stabilized_l1.py [noisy.tif [clean.tif]]
"""

import sys

from distill.hardware import keep_freed_memory
from losses import L1
from recipes.stabilized_l2 import main

if __name__ == "__main__":
    keep_freed_memory()
    main(L1(), "runs/stabilized_l1", *sys.argv[1:])
