"""Plots leave matplotlib as its user has set it."""

import subprocess
import sys

import numpy as np

from distill.plots.pictures import typical

DRAW = """
import sys, matplotlib, torch
from pathlib import Path

matplotlib.rcParams["backend"] = "template"
before = dict(matplotlib.rcParams)
from distill.plots import curves, noise, pictures, residuals
from samplers import AutoregressiveNoise, GaussianNoise

folder, image, model = Path(sys.argv[1]), torch.rand(1, 32, 32), GaussianNoise(1.0)
model.held_out_nll = 0.0
pictures.mosaic(folder / "mosaic.png", [image[None]], rows=1)
pictures.comparison(folder / "comparison.png", {"noisy": image[0].numpy()})
estimates = {"student": image - 1}
found = residuals.residual_curves(image, estimates, model)
residuals.residual_picture(folder / "residuals.png", image, estimates, found)
values = image.flatten().numpy()
noise.noise_density(folder / "density.png", model, values, values, 0, 1)
lines = image.numpy() - 0.5
noise.noise_autocorrelation(folder / "lines.png", AutoregressiveNoise.fit(lines, "row", steps=1), lines, 0.0)
row = {"seconds_per_image": 1.0, "psnr_mean": 20.0, "psnr_median": 20.0}
svgs = curves.psnr_against_time([row | {"image": "1 draw"}, row | {"image": "student"}])
(folder / "metrics.jsonl").write_text('{"step": 1, "sampler_loss": 1.0}\\n{"step": 2, "sampler_loss": 0.9}')
svgs += curves.training_curves(folder / "metrics.jsonl")
svgs += [curves.coverage({"level": 0.5, "levels": [0.5], "coverage_before": [0], "coverage_after": [1]})]
svgs += curves.residuals(found)
assert len(svgs) == 5 and all(svg.startswith("<svg") for svg, _ in svgs)
assert "matplotlib.pyplot" not in sys.modules and dict(matplotlib.rcParams) == before
"""


def test_no_backend_is_chosen_and_pyplot_not_imported(tmp_path):
    subprocess.run([sys.executable, "-W", "ignore", "-c", DRAW, tmp_path], check=True)
    assert len([*tmp_path.glob("*.png")]) == 5
    assert {path.suffix for path in tmp_path.iterdir()} == {".png", ".jsonl"}


def test_a_zoom_shows_typical_texture_and_neither_background_nor_the_brightest_spot():
    image = np.zeros((256, 256))
    image[:128, :128] = np.random.default_rng(0).normal(0, 1, (128, 128))
    image[200, 200] = 100.0
    y, x = typical(image, 32)
    assert y <= 96 and x <= 96
    assert typical(np.zeros((16, 16)), 16) == (0, 0)
