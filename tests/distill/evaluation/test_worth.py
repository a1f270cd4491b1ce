import math

import numpy as np
import pytest
import torch

from distill import DirectDenoiser, Run, evaluate
from distill.evaluation.worth import worth
from losses import L2
from samplers import FunctionSampler


def rows(errors: dict[str, float]) -> list[dict]:
    return [{"image": name, "psnr_mean": -10 * math.log10(mse)} for name, mse in errors.items()]


def draws(a: float, b: float, *numbers: int) -> dict[str, float]:
    return {f"{n} draw{'s' * (n > 1)}": a + b / n for n in numbers}


@pytest.mark.parametrize(
    ("student", "told"),
    [
        (2.0 + 1.0 / 50, "as good as the mean of about 50 draws"),
        (2.0 + 1.0 / 2.5, "as good as the mean of about 2.5 draws"),
        (2.0 + 1.0 / 523, "as good as the mean of about 520 draws"),
        (2.0 + 1.0 / 5000, "better than the mean of 1,000 draws"),
        (1.9, "better than the mean of any number of draws"),
        (4.0, "worse than a single draw"),
    ],
)
def test_the_number_of_draws_whose_mean_has_the_students_error(student, told):
    table = rows(
        {"noisy input": 9.0} | draws(2.0, 1.0, 1, 10, 100) | {"student": student, "student std": 5.0}
    )
    (sentence,) = worth(table)
    assert sentence == f"The student is {told}."


def test_two_numbers_of_draws_suffice_and_less_say_nothing():
    assert worth(rows(draws(0.0, 1.0, 10, 20) | {"student": 0.01})) == [
        "The student is as good as the mean of about 100 draws."
    ]
    assert worth(rows(draws(2.0, 1.0, 100) | {"student": 1.0})) == []
    assert worth(rows(draws(2.0, 1.0, 1, 10))) == []
    assert worth(rows({"1 draw": 1.0, "10 draws": 1.0, "student": 1.0})) == []
    assert worth([{"image": "1 draw"}, {"image": "10 draws"}, {"image": "student"}]) == []
    nothing = {"image": "student", "psnr_mean": math.nan}
    assert worth([*rows(draws(2.0, 1.0, 1, 10)), nothing]) == []


def test_a_mean_of_known_draws_is_told_by_evaluate(tmp_path, monkeypatch):
    """A student that is the mean of 20 draws: its error is that of 20."""
    clean = (100 + 20 * np.random.default_rng(0).random((1, 96, 96))).astype(np.float32)
    truth = torch.from_numpy(clean)[None]
    sampler = FunctionSampler(lambda noisy: truth + 3 * torch.randn_like(noisy))

    class MeanOf20(torch.nn.Module):
        def forward(self, x):
            return truth + 3 / math.sqrt(20) * torch.randn_like(x)

    run = Run(tmp_path, sampler, DirectDenoiser(MeanOf20(), L2()))
    found = evaluate(run, clean + 1, clean, draws=[1, 10], device="cpu")
    said = (tmp_path / "evaluation.md").read_text()
    number = float(said.split("mean of about ")[1].split(" draws")[0])
    assert number == pytest.approx(20, rel=0.15), [row["psnr_mean"] for row in found]
