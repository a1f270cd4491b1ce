"""A first answer before any training."""

import numpy as np
import pytest
import tifffile
import torch

from distill import UserError, predict, psnr, specimen, train
from distill.__main__ import main
from losses import L2
from samplers import FunctionSampler
from students import StabilizedUNet

STILL = dict(steps=1, refine_steps=0, student_lr=0.0, batch_size=1, micro_batch=1, patch_size=16,
             val_fraction=0.0, device="cpu")  # fmt: skip


@pytest.fixture(scope="module")
def made():
    return specimen(3, 96)


@pytest.fixture
def stack(made, tmp_path, monkeypatch) -> np.ndarray:
    monkeypatch.chdir(tmp_path)
    tifffile.imwrite("noisy.tif", made.noisy, imagej=True, metadata={"axes": "TYX"})
    return made.noisy


def gained(denoised: np.ndarray, noisy: np.ndarray, clean: np.ndarray) -> float:
    return psnr(*map(torch.from_numpy, (denoised, clean))) - psnr(*map(torch.from_numpy, (noisy, clean)))


def test_the_shipped_weights_answer_in_counts(made):
    noisy = made.noisy.astype(np.float32)
    denoised = predict("pretrained", noisy)
    assert denoised.shape == noisy.shape and denoised.dtype == np.float32
    assert gained(denoised, noisy, made.clean) > 8
    two = np.stack([noisy, 3 * noisy], axis=1)
    np.testing.assert_allclose(predict("pretrained", two, axes="TCYX")[:, 0], denoised, rtol=0.01)


def test_it_is_what_training_starts_from(made, tmp_path):
    run = train(made.noisy, FunctionSampler(lambda x: x), StabilizedUNet(), L2(), tmp_path, **STILL)
    expected = predict(run.denoiser, made.noisy, device="cpu")
    np.testing.assert_allclose(predict("pretrained", made.noisy, device="cpu"), expected, rtol=1e-4)


def test_the_command(stack, capsys):
    for i, words in enumerate(["--with pretrained noisy.tif --out 0.tif",
                               "pretrained noisy.tif --out 1.tif",
                               "noisy.tif --out 2.tif --with pretrained",
                               "noisy.tif --with=pretrained --out 3.tif"]):  # fmt: skip
        assert main(["predict", *words.split()]) == 0
        assert f"{i}.tif: written" in capsys.readouterr().out
    images = [tifffile.imread(f"{i}.tif") for i in range(4)]
    assert all(np.array_equal(image, images[0]) for image in images) and images[0].shape == stack.shape


def test_the_command_with_a_run(stack):
    run = train("noisy.tif", FunctionSampler(lambda x: x), StabilizedUNet(), L2(), "run", **STILL)
    assert main(["predict", "--with", "run", "noisy.tif", "--out", "with.tif"]) == 0
    np.testing.assert_allclose(tifffile.imread("with.tif"), predict(run.denoiser, "noisy.tif"), rtol=1e-5)


def test_draws_of_the_shipped_sampler(stack):
    assert main(["predict", "--with", "pretrained", "noisy.tif", "--out", "mean.tif", "--draws", "16"]) == 0
    assert (
        main(
            [
                "predict",
                "--with",
                "pretrained",
                "noisy.tif",
                "--out",
                "std.tif",
                "--draws",
                "4",
                "--statistic",
                "std",
            ]
        )
        == 0
    )
    mean, noisy = tifffile.imread("mean.tif"), tifffile.imread("noisy.tif").astype("f4")
    student, std = predict("pretrained", "noisy.tif"), tifffile.imread("std.tif")
    assert std.min() > 0 and std.mean() < 0.7 * (noisy - student).std()
    assert abs(mean - student).mean() < std.mean()


def test_a_folder_of_that_name_is_a_run(stack):
    train("noisy.tif", FunctionSampler(lambda x: x), StabilizedUNet(width=8), L2(), "pretrained",
          init="none", **STILL)  # fmt: skip
    by_name, by_path = predict("pretrained", "noisy.tif"), predict("./pretrained", "noisy.tif")
    np.testing.assert_array_equal(by_name, by_path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--with pretrained --out x.tif", "noisy"),
        ("noisy.tif --out x.tif --with", "--with"),
        ("--with nowhere noisy.tif --out x.tif", "nowhere"),
        ("--with pretrained noisy.tif", "missing: --out"),
    ],
)
def test_what_cannot_be_is_one_line(words, message, stack, tmp_path, capsys):
    assert main(["predict", *words.split()]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.strip().splitlines()) == 1
    assert not (tmp_path / "x.tif").exists()


def test_images_without_a_noise_line_are_refused():
    with pytest.raises(UserError, match=r"noise: .* at least 14"):
        predict("pretrained", np.random.default_rng(0).normal(100, 10, (2, 12, 12)))


def test_spots_on_a_background_without_photons_stay_as_sharp():
    rng, (y, x) = np.random.default_rng(1), np.mgrid[:256, :256]
    clean = np.zeros((256, 256))
    for _ in range(10):
        a, b = rng.uniform(10, 246, 2)
        clean += rng.uniform(200, 3000) * np.exp(-((y - a) ** 2 + (x - b) ** 2) / 4)
    noisy = rng.poisson(clean).astype("f4")
    answer = np.asarray(predict("pretrained", noisy)).squeeze()
    for pixels in (clean > 10, clean <= 10):
        assert np.square(answer - clean)[pixels].mean() < np.square(noisy - clean)[pixels].mean()
    assert answer.min() > -5
