"""Against closed forms: the linear-Gaussian field's own draws, and what is wrong with them on purpose."""

import pytest
import torch

from distill.evaluation.checks import FINE, LIMIT, PARTS, advice, by_brightness, columns
from distill.evaluation.compare import compare
from distill.hardware import Hardware
from losses import L2, EnergyScore
from samplers import FunctionSampler, LinearGaussianField

FIELD = LinearGaussianField()


@pytest.fixture
def pairs():
    clean = FIELD.prior(2, (256, 256))
    return list(zip(FIELD.observe(clean), clean, strict=True))


class Estimator(torch.nn.Module):
    reshapes = False

    def __init__(self, estimate, loss=None):
        super().__init__()
        self.estimate, self.loss = estimate, loss or L2()

    def maps(self, noisy):
        return {"mean": self.estimate(noisy)}


def compared(pairs, sampler=FIELD, estimate=FIELD.posterior_mean, draws=(1, 20), loss=None):
    rows, _, parts = compare(sampler, Estimator(estimate, loss), pairs, draws, Hardware("cpu"))
    return {row["image"]: row for row in rows}, parts


def spread(times):
    def sample(noisy, n):
        mean = FIELD.posterior_mean(noisy)
        return mean + times * (FIELD.sample(noisy, n) - mean)

    return FunctionSampler(sample)


def test_a_posterior_has_a_dispersion_of_2_a_covariance_of_1_and_no_bias(pairs):
    rows, parts = compared(pairs)
    assert rows["20 draws"]["dispersion"] == pytest.approx(2, abs=0.08)
    assert "dispersion" not in rows["1 draw"] and "kept" not in rows["noisy input"]
    for image in ("20 draws", "student"):
        assert rows[image]["kept"] == pytest.approx(1, abs=0.05)
        own = [row for row in parts if row["image"] == image]
        assert len(own) == PARTS and all(abs(row["relative_bias"]) < 0.1 for row in own)
        assert sorted(own, key=lambda row: row["brightness"]) == own
        assert own[0]["noise_std"] == pytest.approx(FIELD.noise_std, rel=0.05)
        assert sum(row["pixels"] for row in own) == 2 * 256 * 256
    assert advice(parts) == [FINE]


@pytest.mark.parametrize(("times", "ratio", "way"), [(0.5, 1.25, "less"), (1.5, 3.25, "more")])
def test_draws_that_disagree_too_little_or_too_much(pairs, times, ratio, way):
    rows, parts = compared(pairs, spread(times), draws=[20])
    assert rows["20 draws"]["dispersion"] == pytest.approx(ratio, rel=0.05)
    said = advice(parts)
    percent = float(said[0].removeprefix("The draws disagree ").split("%")[0])
    assert percent == pytest.approx(50, abs=4)
    assert f"% {way} than a posterior's would ({rows['20 draws']['dispersion']:.1f} where 2" in said[0]
    assert said[1:] == ([LIMIT] if times < 1 else [])


def test_few_draws_give_the_same_dispersion_and_no_false_bias(pairs):
    rows, parts = compared(pairs, draws=[2])
    assert rows["2 draws"]["dispersion"] == pytest.approx(2, abs=0.08)
    assert rows["2 draws"]["kept"] == pytest.approx(1, abs=0.06)
    assert "bias" not in parts[0] and advice(parts) == [FINE]


def test_an_estimator_that_stretches_is_biased_and_one_that_is_dim_is_too_low(pairs):
    stretched = lambda noisy: 100 + 2 * (FIELD.posterior_mean(noisy) - 100)
    said = advice(compared(pairs, estimate=stretched)[1])
    assert any(
        text.startswith("Bright parts come out") and "too high in the student" in text for text in said
    )
    assert any(text.startswith("Dark parts come out") and "too low in the student" in text for text in said)
    shrinks = lambda noisy: 0.7 * FIELD.posterior_mean(noisy)
    (text,) = [text for text in advice(compared(pairs, estimate=shrinks)[1]) if "counts" in text]
    assert text.startswith("Dark, middle and bright parts come out") and "too low in the student" in text


def test_an_estimator_that_shrinks_to_the_mean_is_too_low_where_it_is_bright(pairs):
    shrinks = lambda noisy: 100 + 0.5 * (FIELD.posterior_mean(noisy) - 100)
    said = advice(compared(pairs, estimate=shrinks)[1])
    assert any(text.startswith("Bright parts come out") and "too low in the student" in text for text in said)
    assert any(text.startswith("Dark parts come out") and "too high in the student" in text for text in said)


def test_noise_that_is_kept_and_signal_that_is_smoothed_away(pairs):
    half = lambda noisy: (noisy + FIELD.posterior_mean(noisy)) / 2
    rows, parts = compared(pairs, estimate=half)
    said = advice(parts)
    assert rows["student"]["kept"] > 1.5
    assert said[0].startswith("In dark, middle and bright parts the student keeps noise (1.")
    smooth = lambda noisy: torch.nn.functional.avg_pool2d(noisy, 7, 1, 3, count_include_pad=False)
    rows, parts = compared(pairs, estimate=smooth)
    assert rows["student"]["kept"] < 0.8
    assert "parts the student smooths signal away (0." in advice(parts)[0] and advice(parts)[-1] == LIMIT


def test_a_student_that_learnt_it_from_its_sampler(pairs):
    dim = lambda noisy: FIELD.posterior_mean(noisy) - 10
    sampler = FunctionSampler(lambda noisy, n: FIELD.sample(noisy, n) - 10)
    said = [text for text in advice(compared(pairs, sampler, dim)[1]) if "counts" in text]
    assert "10 counts" in said[0] and "in the mean of 20 draws: check the noise model" in said[0]
    assert said[1].endswith("in the student: so they do in its sampler's draws.")


def test_what_cannot_be_told_is_not(pairs):
    alone = [(noisy, None) for noisy, _ in pairs]
    (said,) = advice(compared(alone, draws=[3])[1])
    std = float(FIELD.posterior_std(pairs[0][0][None]).mean())
    assert float(said.split("from their mean by ")[1].split()[0]) == pytest.approx(std, rel=0.05)
    assert advice(compared(alone, draws=[])[1]) == []
    assert compared(pairs, draws=[1], loss=EnergyScore())[1] == []  # a student that gives draws
    for size in (2, 16):  # too few pixels
        tiny = [(noisy[:, :size, :size], clean[:, :size, :size]) for noisy, clean in pairs]
        assert advice(compared(tiny, spread(0.8), FIELD.posterior_mean, [10])[1]) == [FINE]
    perfect = by_brightness("student", *[pairs[0][1]] * 3)
    assert advice(perfect) == [FINE] and columns(perfect, "student") == {}


def test_channels_are_sorted_each_by_its_own_brightness():
    image = torch.stack([torch.rand(30, 30), 1000 + torch.rand(30, 30)])
    rows = by_brightness("student", image, image + 1, image)
    assert rows[0]["brightness"] == pytest.approx(500 + 1 / 18, abs=0.02)
