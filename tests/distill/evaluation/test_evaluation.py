import csv
import json
import math

import numpy as np
import pytest
import torch

from distill import UserError, evaluate, psnr, specimen, train
from distill.evaluation.compare import compare
from distill.evaluation.evaluate import UNFINISHED, evaluate_all
from distill.evaluation.metrics import ssim
from distill.evaluation.residuals import residual_scores
from distill.evaluation.stored_draws import StoredDraws
from distill.evaluation.tables import format_table
from distill.hardware import Hardware
from losses import L2, Quantiles
from samplers import GaussianNoise, LinearGaussianField
from samplers.base import median
from students import UNet


def test_psnr_is_the_papers():
    clean = torch.tensor([[10.0, 60.0]])
    assert psnr(clean + 5, clean) == pytest.approx(20 * math.log10(50 / 5))


@pytest.mark.parametrize("shape", [(1, 11, 40), (2, 64, 33)])
@pytest.mark.parametrize(("level", "contrast"), [(0.0, 1.0), (3000.0, 40.0)])
def test_ssim_is_that_of_scikit_image(shape, level, contrast):
    metrics = pytest.importorskip("skimage.metrics")
    clean = level + contrast * torch.randn(shape)
    image = clean + 0.3 * contrast * torch.randn(shape)
    expected = metrics.structural_similarity(
        image.double().numpy(), clean.double().numpy(), channel_axis=0, gaussian_weights=True, sigma=1.5,
        data_range=float(clean.max().double() - clean.min().double()), use_sample_covariance=False,
    )  # fmt: skip
    assert ssim(image, clean) == pytest.approx(expected, abs=1e-9)


def test_ssim_is_1_for_the_same_image_falls_with_noise_and_needs_11_pixels():
    clean = torch.rand(2, 32, 32)
    assert ssim(clean, clean) == pytest.approx(1)
    assert ssim(clean + 0.1 * torch.randn(2, 32, 32), clean) < 0.99
    assert math.isnan(ssim(clean[..., :10], clean[..., :10]))


def test_averages_of_draws_approach_the_posterior_mean():
    field = LinearGaussianField()
    clean = field.prior(1, (256, 256))
    noisy = field.observe(clean)

    class Wiener(torch.nn.Module):
        loss, reshapes = L2(), False

        def maps(self, noisy):
            return {"mean": field.posterior_mean(noisy)}

    rows, pictures, _ = compare(field, Wiener(), [(noisy[0], clean[0])], (30, 1, 4), Hardware("cpu"))
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


def test_stored_draws_go_on_after_a_stop_with_the_draws_of_an_undisturbed_run(tmp_path, monkeypatch):
    monkeypatch.setattr("distill.evaluation.stored_draws.BAND_BYTES", 4 * 7 * 16)  # bands of one row
    monkeypatch.setattr("distill.evaluation.stored_draws.BLOCK", 3)
    field = LinearGaussianField()
    noisy = field.observe(field.prior(1, (8, 16)))
    StoredDraws(tmp_path / "0", field, noisy, 7).take(2)
    with open(tmp_path / "0.f32", "ab") as file:
        file.write(b"half a draw")
    assert not StoredDraws(tmp_path / "0", field, noisy, 7, work="of another image").seconds
    stored = StoredDraws(tmp_path / "0", field, noisy, 7)
    assert len(stored.seconds) == 3
    mean, middle, variance, seconds = stored.take(7)
    draws = torch.from_numpy(np.fromfile(tmp_path / "0.f32", np.float32)[: 7 * 128].reshape(7, 1, 8, 16))
    assert len(draws.flatten(1).unique(dim=0)) == 7
    torch.testing.assert_close(mean, draws.mean(0))
    torch.testing.assert_close(middle, median(draws))
    torch.testing.assert_close(variance, draws.var(0))
    assert seconds == sum(stored.seconds)
    assert mean.equal(StoredDraws(tmp_path / "whole", field, noisy, 7).take(7)[0])
    assert not mean.equal(StoredDraws(tmp_path / "1", field, noisy, 7, frame=1).take(7)[0])
    (tmp_path / "0.f32").write_bytes(b"lost")
    assert not StoredDraws(tmp_path / "0", field, noisy, 7).seconds
    stored.delete()
    assert {path.stem for path in tmp_path.iterdir()} == {"whole", "1"}


def test_residuals_tell_structure_that_was_removed_from_noise_that_was_left():
    cells = specimen(1, 128)
    noisy, clean = (torch.from_numpy(v.astype(np.float32)) for v in (cells.noisy, cells.clean))
    noise_model = GaussianNoise(gain=cells.gain, offset=cells.offset)
    right = residual_scores(noisy, clean, noise_model)
    assert abs(right["correlation_x"]) < 0.02 and abs(right["correlation_y"]) < 0.02
    assert right["residual_std"] == pytest.approx(right["expected_std"], rel=0.03)
    assert right["nll"] == pytest.approx(right["expected_nll"], abs=0.03)
    flat = residual_scores(noisy, clean.mean().expand_as(clean), noise_model)
    assert flat["correlation_x"] > 0.2 and flat["residual_std"] > 1.1 * flat["expected_std"]
    timid = residual_scores(noisy, (noisy + clean) / 2, noise_model)
    assert timid["residual_std"] < 0.6 * timid["expected_std"]
    assert "nll" not in residual_scores(noisy, clean, None)


@pytest.fixture
def run(noisy, tiny_hdn, tiny_unet, tmp_path):
    options = dict(steps=2, refine_steps=0, batch_size=2, micro_batch=2, patch_size=16, device="cpu")
    return train(noisy, tiny_hdn, tiny_unet, out=tmp_path / "run", **options).path


def test_a_run_against_ground_truth(noisy, run):
    rows = evaluate(run, noisy, noisy.mean(0), draws=[1, 3], frames=2, device="cpu")
    assert [row["image"] for row in rows] == ["noisy input", "1 draw", "3 draws", "student"]
    table = format_table(rows)
    assert "PSNR" in table and "SSIM" in table and "residual" not in table
    with open(run / "evaluation.csv") as file:
        stored = list(csv.DictReader(file))
    assert float(stored[3]["psnr_mean"]) == rows[3]["psnr_mean"] and stored[3]["run"] == "run"
    shown, said = (run / "evaluation.md").read_text().split("\n\n")
    assert shown == table and said.startswith("- ") and "dispersion, ideal 2" in table
    with open(run / "checks.csv") as file:
        parts = list(csv.DictReader(file))
    assert [row["image"] for row in parts] == 9 * ["3 draws"] + 9 * ["student"]
    assert parts[-1]["relative_bias"] and not parts[0]["relative_bias"]
    assert (run / "evaluation.png").exists() and not (run / UNFINISHED).exists()
    assert "student, one pass" in (run / "psnr_against_time.svg").read_text()
    with np.load(run / "evaluation.npz") as images:
        assert list(images)[-1] == "ground truth" and images["student"].shape == (48, 40)
    with pytest.raises(UserError, match="clean: got frames"):
        evaluate(run, noisy, np.zeros((3, 48, 40)))


def test_nan_is_counted_and_nothing_is_written(noisy, run):
    before = sorted(run.iterdir())
    broken = noisy.astype("f4")
    broken[1:3, 5, 5:8] = np.nan
    for images, truth in ((broken, None), (noisy, broken)):
        with pytest.raises(UserError, match=r"6 pixels in 2 of 4 frames \(first in frame 1\) are NaN"):
            evaluate(run, images, truth, draws=[1], device="cpu")
    assert sorted(run.iterdir()) == before


def test_without_ground_truth(noisy, run):
    rows = evaluate(run, noisy, draws=[2, 4], frames=2, device="cpu")
    table = format_table(rows)
    assert "correlation along x" in table and "PSNR of" not in table and "NLL" in table
    assert rows[1]["psnr_to_draws"] > 0 and "psnr_to_draws" not in rows[2]
    assert (run / "residuals.png").exists() and "noisy input" not in table
    assert json.loads((run / "residuals.json").read_text()).keys() == {"2 draws", "4 draws", "student"}
    assert "The draws differ from their mean by" in (run / "evaluation.md").read_text()


def test_a_stopped_evaluation_goes_on(noisy, run, monkeypatch):
    taken, take = [], StoredDraws.take

    def stopping(self, n):
        taken.append(n)
        if len(taken) == 4:
            raise KeyboardInterrupt
        return take(self, n)

    monkeypatch.setattr(StoredDraws, "take", stopping)
    with pytest.raises(KeyboardInterrupt):
        evaluate(run, noisy, noisy, draws=[1, 3], device="cpu")
    rows = evaluate(run, noisy, noisy, draws=[1, 3], device="cpu")
    assert taken == [1, 3, 1, 3] + [1, 3] * 3 and len(rows) == 4  # the first frame was not drawn again
    undisturbed = evaluate(run, noisy, noisy, run / "other", draws=[1, 3], device="cpu")
    for row, same in zip(rows, undisturbed, strict=True):
        assert row | {"seconds_per_image": 0, "memory_mb": 0} == same | {
            "seconds_per_image": 0,
            "memory_mb": 0,
        }
    assert not (run / ".evaluate.lock").exists()


def test_a_stop_in_the_first_image_keeps_its_draws(noisy, run, monkeypatch):
    stop = lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
    with monkeypatch.context() as stopped:
        stopped.setattr(StoredDraws, "_consensus", stop)
        with pytest.raises(KeyboardInterrupt):
            evaluate(run, noisy, noisy, draws=[3], device="cpu")
    state = json.loads((run / UNFINISHED / "0.json").read_text())
    monkeypatch.setattr(StoredDraws, "delete", lambda self: None)
    monkeypatch.setattr("shutil.rmtree", lambda path: None)
    rows = evaluate(run, noisy, noisy, draws=[3], device="cpu")
    assert json.loads((run / UNFINISHED / "0.json").read_text()) == state and len(rows) == 3


def test_every_map_of_a_student_and_several_runs_and_data_sets(noisy, tiny_hdn, tmp_path):
    options = dict(steps=2, refine_steps=0, batch_size=2, micro_batch=2, patch_size=16, device="cpu")
    for name, loss in {"mean": L2(), "quantiles": Quantiles()}.items():
        student = UNet(out_channels=len(loss.outputs), depth=2, filters=4)
        train(noisy, tiny_hdn, student, loss, tmp_path / name, **options)
    data = [(noisy, noisy.mean(0)), (noisy[:2], noisy[:2])]
    runs = [tmp_path / "mean", tmp_path / "quantiles"]
    rows = evaluate_all(runs, data, tmp_path / "out", draws=[1], frames=1, device="cpu")
    assert [row["image"] for row in rows[-5:]] == [
        "noisy input", "1 draw", "student", "student q05", "student q95",
    ]  # fmt: skip
    lines = (tmp_path / "out" / "table1.md").read_text().splitlines()
    assert len(lines) == 4 + 4 and "student q95" in lines[2]
    assert (tmp_path / "out" / "quantiles" / "array_2" / "evaluation.png").exists()
