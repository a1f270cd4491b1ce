import csv
import math

import numpy as np
import pytest
import torch

from distill import UserError, evaluate, psnr, train
from distill.evaluation import compare, format_table
from losses import L2
from samplers import LinearGaussianField


def test_psnr_is_the_papers():
    clean = torch.tensor([[10.0, 60.0]])
    assert psnr(clean + 5, clean) == pytest.approx(20 * math.log10(50 / 5))


def test_averages_of_draws_approach_the_posterior_mean():
    field = LinearGaussianField()
    clean = field.prior(1, (256, 256))
    noisy = field.observe(clean)

    class Wiener(torch.nn.Module):
        loss = L2()

        def forward(self, noisy):
            return field.posterior_mean(noisy)

    rows, pictures = compare(field, Wiener(), [(noisy[0], clean[0])], (30, 1, 4), torch.device("cpu"))
    assert [row["image"] for row in rows] == [
        "noisy input",
        "1 draw",
        "4 draws",
        "30 draws",
        "student",
    ]
    scores = [row["psnr_mean"] for row in rows]
    assert scores == sorted(scores)
    # by the law of total variance, MSE(n draws) = MSE(mean) + posterior variance / n
    mse = lambda db: float((clean.max() - clean.min()) ** 2) / 10 ** (db / 10)
    variance = float(field.posterior_std(noisy).square().mean())
    assert mse(scores[1]) - mse(scores[4]) == pytest.approx(variance, rel=0.15)
    assert len(pictures) == 6


def test_a_run_against_ground_truth(noisy, tiny_hdn, tiny_unet, tmp_path):
    train(noisy, tiny_hdn, tiny_unet, out=tmp_path / "run", steps=2, refine_steps=0, batch_size=2,
          micro_batch=2, patch_size=16, device="cpu")  # fmt: skip
    rows = evaluate(tmp_path / "run", noisy, noisy.mean(0), draws=[1, 3], frames=2, device="cpu")
    assert len(rows) == 4 and "student" in format_table(rows)
    with open(tmp_path / "run" / "evaluation.csv") as file:
        stored = list(csv.DictReader(file))
    assert float(stored[3]["psnr_mean"]) == rows[3]["psnr_mean"]
    assert (tmp_path / "run" / "evaluation.png").exists()
    with pytest.raises(UserError, match="clean: got frames"):
        evaluate(tmp_path / "run", noisy, np.zeros((3, 48, 40)))
