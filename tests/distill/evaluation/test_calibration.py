import numpy as np
import pytest
import tifffile
import torch
from torch import nn

from distill import UserError, calibrate, load_denoiser, predict, train
from distill.__main__ import main
from losses import L2, Loss
from samplers import FunctionSampler

QUICK = dict(steps=1, refine_steps=0, batch_size=2, patch_size=16, lr=0.0, device="cpu")


class Spread(Loss):
    """The image itself +- 1 standard deviation of the data."""

    outputs = ("mean", "std")

    def forward(self, prediction, draws):
        return (draws - prediction[:, :1]).square().mean()

    def maps(self, prediction):
        mean = prediction[:, :1]
        return {"mean": mean, "std": torch.ones_like(mean)}


class Band(Spread):
    outputs = ("median", "q05", "q95")

    def maps(self, prediction):
        mean = prediction[:, :1]
        return {"median": mean, "q05": mean - 1, "q95": mean + 2}


class Same(nn.Module):
    def __init__(self, maps: int = 2):
        super().__init__()
        self.maps = maps
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return x.repeat(1, self.maps, 1, 1) + self.unused


def trained(noisy, path, loss):
    train(noisy, FunctionSampler(lambda x: x), Same(len(loss.outputs)), loss, path, **QUICK)
    return path


@pytest.mark.parametrize("loss", [Spread(), Band()])
@pytest.mark.parametrize("level", [0.5, 0.9])
def test_the_share_of_true_pixels_inside_is_the_level(noisy, tmp_path, loss, level):
    clean = noisy + np.random.default_rng(1).normal(0, 10, noisy.shape).astype("f4")
    found = calibrate(trained(noisy, tmp_path, loss), noisy, clean, level=level, trust=__name__)
    assert found.before > level and abs(found.after - level) < 1e-3 and found.factor < 1
    again = calibrate(tmp_path, noisy, clean, level=level, trust=__name__)
    assert again.factor == pytest.approx(found.factor) and again.after == pytest.approx(found.after, abs=1e-3)
    assert torch.isclose(
        load_denoiser(tmp_path, trust=__name__).spread, torch.tensor(found.factor), rtol=1e-2
    )


def test_coverage_is_reported_on_other_images_and_predict_writes_every_map(
    noisy, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    trained(noisy, tmp_path / "run", Band())
    tifffile.imwrite("noisy.tif", noisy, imagej=True, metadata={"axes": "TYX"})
    tifffile.imwrite("clean.tif", noisy[0] + 5)
    tifffile.imwrite("far.tif", noisy[0] + 1000)
    assert main(["calibrate", "run", "noisy.tif", "clean.tif", "--test_noisy", "noisy.tif",
                 "--test_clean", "far.tif", "--trust", __name__]) == 0  # fmt: skip
    assert "0.0% now" in capsys.readouterr().out
    assert (
        main(
            ["predict", "run", "noisy.tif", "--out", "denoised.tif", "--dtype", "input", "--trust", __name__]
        )
        == 0
    )
    centre, low, high = (tifffile.imread(f"denoised{name}.tif") for name in ("", "_q05", "_q95"))
    np.testing.assert_allclose(high - centre, 2 * (centre - low), rtol=1e-2)
    assert main(["predict", "run", "noisy.tif", "--out", "denoised.tif", "--trust", __name__]) == 2
    np.testing.assert_allclose(predict("run", "noisy.tif", tile=64, trust=__name__), noisy, rtol=1e-4)


def test_pixels_without_truth_are_left_out_and_counted(noisy, tmp_path, capsys):
    clean = noisy + np.random.default_rng(1).normal(0, 10, noisy.shape).astype("f4")
    run = trained(noisy, tmp_path / "run", Spread())
    whole = calibrate(run, noisy, clean, trust=__name__)
    masked = clean.copy()
    masked[:, :20] = np.nan
    found = calibrate(run, noisy, masked, trust=__name__)
    assert found.left_out == masked[:, :20].size and found.factor == pytest.approx(whole.factor, rel=0.05)
    broken = noisy.astype("f4")
    broken[0, 3, 3] = np.nan
    before = sorted((path.name, path.read_bytes()) for path in run.iterdir())
    for images, truth, message in (
        (noisy, np.full_like(clean, np.nan), "no pixel has both"),
        (noisy, noisy, "scaled by 0"),
        (broken, clean, "1 pixel in 1 of 4 frames"),
    ):
        with pytest.raises(UserError, match=message):
            calibrate(run, images, truth, trust=__name__)
    assert before == sorted((path.name, path.read_bytes()) for path in run.iterdir())
    tifffile.imwrite(tmp_path / "noisy.tif", noisy, imagej=True, metadata={"axes": "TYX"})
    tifffile.imwrite(tmp_path / "clean.tif", masked, imagej=True, metadata={"axes": "TYX"})
    assert (
        main(
            [
                "calibrate",
                str(run),
                str(tmp_path / "noisy.tif"),
                str(tmp_path / "clean.tif"),
                "--trust",
                __name__,
            ]
        )
        == 0
    )
    assert f"{found.left_out} pixels without ground truth ignored" in capsys.readouterr().out


def test_the_factor_lasts_as_long_as_its_student(noisy, tmp_path, caplog):
    clean = noisy + np.random.default_rng(1).normal(0, 10, noisy.shape).astype("f4")
    run = trained(noisy, tmp_path / "run", Spread())
    factor = calibrate(run, noisy, clean, trust=__name__).factor
    trained(noisy, run, Spread())  # the same command again finds a finished run
    assert load_denoiser(run, trust=__name__).spread.item() == pytest.approx(factor)
    trained(noisy[:-1] + 7, tmp_path / "other", Spread())
    (run / "student.safetensors").write_bytes((tmp_path / "other" / "student.safetensors").read_bytes())
    assert load_denoiser(run, trust=__name__).spread.item() == 1 and "calibrate again" in caplog.text
    (run / "calibration.json").write_text('{"factor": ')
    with pytest.raises(UserError, match="damaged"):
        load_denoiser(run, trust=__name__)


class Two(Spread):
    outputs = ("draw", "draw2")


def test_two_draws_are_no_interval(noisy, tmp_path):
    run = trained(noisy, tmp_path, Two())
    with pytest.raises(UserError, match="gives draw and draw2, no interval"):
        calibrate(run, noisy, noisy, trust=__name__)


def test_bad_input(noisy, tmp_path):
    run = trained(noisy, tmp_path / "plain", L2())
    for options, message in (
        ({}, "no interval"), ({"level": 1.0}, "level: got 1.0"), ({"test_noisy": noisy}, "pass both")
    ):  # fmt: skip
        with pytest.raises(UserError, match=message):
            calibrate(run, noisy, noisy, **options, trust=__name__)
