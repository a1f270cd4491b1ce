"""Sentences by what residuals and ground truth show: of images whose answer is known."""

import pytest
import torch
from torch import nn

from distill.evaluation.compare import noise_model_of
from distill.evaluation.residuals import residual_scores
from distill.evaluation.tables import in_counts, write_csv
from distill.evaluation.verdict import SENTENCES, STEPS, next_step, read_table, verdict
from samplers import HDN, FunctionSampler, GaussianNoise
from students import StabilizedUNet


@pytest.fixture
def signal() -> torch.Tensor:
    y, x = torch.meshgrid(torch.arange(96.0), torch.arange(96.0), indexing="ij")
    return (200 + 60 * torch.sin(y / 3) * torch.cos(x / 3))[None]


def told(noisy: torch.Tensor, denoised: torch.Tensor, std: float = 10.0) -> str:
    rows = [{"image": "student", **residual_scores(noisy, denoised, GaussianNoise(std))}]
    assert next_step(rows).startswith("Next: ")
    return verdict(rows)


def test_residuals_that_are_noise_alone(signal):
    assert told(signal + 10 * torch.randn_like(signal), signal) == SENTENCES["noise"]


def test_hot_pixels_are_left_out(signal):
    noisy = signal + 10 * torch.randn_like(signal)
    noisy[0, [20, 50, 80], [30, 40, 90]] = 65535.0
    assert told(noisy, signal) == SENTENCES["noise"]


def test_lost_structure_and_correlated_noise_correlate(signal):
    noise = 10 * torch.randn_like(signal)
    assert "structure of the image was removed" in told(signal + noise, signal.mean().expand_as(signal))
    lines = torch.nn.functional.avg_pool2d(noise, (1, 3), 1, (0, 1))
    assert "are correlated (0." in told(signal + lines, signal)


def test_smooth_noise_that_is_left(signal):
    noise = 10 * torch.randn_like(signal)
    left = torch.nn.functional.avg_pool2d(noise, 3, 1, 1)
    assert "(-0.1" in (text := told(signal + noise, signal + left)) and "left in the image" in text


@pytest.mark.parametrize(("std", "words"), [(5.0, "too narrow"), (20.0, "too wide")])
def test_residuals_against_the_noise_model(signal, std, words):
    assert words in told(signal + 10 * torch.randn_like(signal), signal, std)


def test_without_a_noise_model_the_estimated_line_is_compared(signal):
    student = StabilizedUNet(2, 2)
    gain, offset = (torch.tensor(values)[:, None, None] for values in ([2.0, 0.0], [-100.0, 64.0]))
    both = torch.cat([signal, signal])
    student.prepare(both[None], both.mean((1, 2), keepdim=True), both.std((1, 2), keepdim=True), gain, offset)
    noise_model = noise_model_of(FunctionSampler(torch.clone), student)
    assert noise_model is not None
    row = residual_scores(both + 10 * torch.randn_like(both), both, noise_model)
    variance = (2 * signal.mean() - 100 + 64) / 2
    assert row["expected_std"] == pytest.approx(float(variance) ** 0.5, rel=0.02)
    own = GaussianNoise(5.0)
    assert (
        isinstance(model := noise_model_of(HDN(own, levels=2), student), GaussianNoise) and model.std == 5.0
    )
    assert noise_model_of(FunctionSampler(torch.clone), nn.Identity()) is None


def test_nothing_removed(signal):
    assert told(signal, signal) == SENTENCES["nothing"]


def test_gains_with_ground_truth():
    rows = [{"image": name, "psnr_mean": psnr} for name, psnr in
            {"noisy input": 20.0, "1 draw": 25.0, "100 draws": 30.5, "student": 30.0}.items()]  # fmt: skip
    assert verdict(rows) == (
        "One pass of the student is 10.00 dB better than the noisy images "
        "and 0.50 dB worse than the mean of 100 draws."
    )
    assert "longer" in next_step(rows) and "further images" in next_step([rows[0], rows[-1]])
    assert "10.00 dB better than the noisy images." in verdict([rows[0], rows[-1]])


def test_large_counts_have_no_exponent(signal):
    text = told(1000 * (signal + 10 * torch.randn_like(signal)), 1000 * signal, 5000.0)
    assert "10,0" in text or "9,9" in text, text
    assert "e+" not in text and [in_counts(v) for v in (0.0, 0.01234, 4.5, 999.6, 30764.0)] == [
        "0", "0.0123", "4.50", "1,000", "30,800",
    ]  # fmt: skip


def test_every_finding_has_its_step():
    assert SENTENCES.keys() == STEPS.keys()


def test_tables_are_read_as_they_were_written(tmp_path):
    rows = [{"image": "a", "psnr_mean": 20.5}, {"image": "b", "other": 1.0}]
    write_csv(tmp_path / "t.csv", rows)
    assert read_table(tmp_path / "t.csv") == rows
