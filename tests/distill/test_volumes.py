"""Networks that see volumes: the planes of a stack together."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from torch import Tensor

from distill import (
    Run,
    Stack,
    UserError,
    cache_draws,
    calibrate,
    denoise,
    evaluate,
    load_denoiser,
    load_sampler,
    predict,
    report,
    train,
)
from distill.__main__ import main
from distill.hardware import Hardware
from distill.images.volumes import as_volumes
from distill.prediction.receptive_field import receptive_field
from distill.training.patches import MIRRORED_Z, Patches, orientations, split, turned
from losses import L2, EnergyScore, Quantiles
from samplers import HDN, FunctionSampler, GaussianNoise, LinearGaussianField, StabilizedSampler
from students import LightUNet, StabilizedUNet

SHORT: dict[str, Any] = dict(batch_size=2, micro_batch=2, patch_size=16, device="cpu", validate_every=2)
FIELD = LinearGaussianField(dims=3)


def hdn() -> HDN:
    return HDN(GaussianNoise(std=20.0), dims=3, levels=1, latents=2, filters=4, blocks=1, unshuffle=2)


def light(**options) -> LightUNet:
    return LightUNet(dims=3, width=8, depth=1, **options)


def observed(size=(6, 32, 40), n: int = 1) -> tuple[Tensor, Tensor]:
    """(clean, noisy), each (n, 1, *size)."""
    generator = torch.Generator().manual_seed(0)
    clean = FIELD.prior(n, size, generator)
    return clean, FIELD.observe(clean, generator)


@pytest.fixture(scope="module")
def stacks() -> tuple[Stack, Stack]:
    clean, noisy = (Stack(each[:, 0].numpy(), "TZYX") for each in observed(n=2))
    return clean, noisy


@pytest.fixture(scope="module")
def run(stacks, tmp_path_factory) -> Run:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("volumes") / "run"
    return train(stacks[1], hdn(), light(), L2(), folder, steps=3, refine_steps=2, **SHORT)


def test_frames_are_volumes_whatever_the_order_of_the_axes():
    pixels = np.arange(2 * 3 * 4 * 2 * 5 * 6).reshape(2, 3, 4, 2, 5, 6)  # S T Z C Y X
    volumes = as_volumes(Stack(pixels, "STZCYX"))
    expected = pixels.swapaxes(2, 3).reshape(6, 2, 4, 5, 6)
    assert volumes.frames.shape == (6, 2, 4, 5, 6)
    np.testing.assert_array_equal(np.asarray(volumes.frames), expected)
    np.testing.assert_array_equal(volumes.frames[4, :, 1:3, 2:, :3], expected[4, :, 1:3, 2:, :3])
    assert volumes.frames[0:0, 1:, 1:3, 2:, :3].shape == (0, 1, 2, 3, 3)
    moved = as_volumes(Stack(pixels.transpose(5, 2, 0, 4, 1, 3), "XZSYTC"))
    np.testing.assert_array_equal(np.asarray(moved.frames), expected)
    np.testing.assert_array_equal(moved.restore(expected), pixels.transpose(5, 2, 0, 4, 1, 3))


def test_patches_are_cut_from_all_planes_and_mirrored_along_z():
    pixels = np.arange(1000 * 12.0).reshape(12, 25, 40)
    frames = as_volumes(Stack(pixels, "ZYX")).frames
    regions, held_out = split(frames, 0.2, 8, 0)
    patches = Patches(frames, regions, 8)
    places = patches.places(200, np.random.default_rng(0), [0])
    assert set(places[1].tolist()) == set(range(9))  # 4 of 12 planes, half of 8
    for patch in patches.cut(places).numpy():
        z, y, x = (int(each) for each in np.unravel_index(int(patch.min()), pixels.shape))
        np.testing.assert_array_equal(patch[0], pixels[z : z + 4, y : y + 8, x : x + 8])
    grid = Patches(frames, held_out, 8).grid(64)
    assert len(grid) == 3 * grid.flatten(1).min(1).values.remainder(1000).unique().numel()  # 3 layers
    inside = {v for _, y0, y1, x0, x1 in held_out for v in pixels[:, y0:y1, x0:x1].ravel().tolist()}
    assert inside.issuperset(grid.flatten().tolist())
    np.testing.assert_array_equal(turned(pixels[None], MIRRORED_Z)[0], pixels[::-1])
    assert len(orientations(True, ())) == 8 and len(set(orientations(True, (), dims=3))) == 16


def test_a_run_is_saved_and_judged(run, stacks, tmp_path):
    clean, noisy = stacks
    answer = predict(run, noisy)
    assert answer.shape == (2, 6, 32, 40)
    stored = load_denoiser(run.path)
    assert stored.mean.shape == (1, 1, 1, 1) and load_sampler(run.path).dims == stored.dims == 3
    np.testing.assert_array_equal(predict(run.path, noisy), answer)
    rows = {row["image"]: row for row in evaluate(run, noisy, clean, draws=[2], device="cpu")}
    assert rows["noisy input"]["psnr_mean"] == pytest.approx(
        np.mean([psnr_of(c, n) for c, n in zip(clean.pixels, noisy.pixels, strict=True)])
    )
    assert {"2 draws", "student"} <= rows.keys()
    with np.load(run.path / "evaluation.npz") as images:
        assert images["student"].shape == (32, 40)
    assert report(run).exists()
    residuals = evaluate(run, noisy, out=tmp_path / "residuals", draws=[1], device="cpu")
    assert all(np.isfinite(float(row["residual_std"])) for row in residuals[1:])


def test_a_stopped_training_resumes_to_the_same_networks(run, stacks, tmp_path):
    def stop(row: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    def trained(**options) -> Run:
        torch.manual_seed(0)
        options = dict(steps=3, refine_steps=2) | SHORT | options
        return train(stacks[1], hdn(), light(), L2(), tmp_path / "run", **options)

    with pytest.raises(KeyboardInterrupt):
        trained(on_log=stop)
    resumed = trained()
    assert (resumed.path / "preview.png").exists()
    np.testing.assert_array_equal(predict(resumed, stacks[1]), predict(run, stacks[1]))


def psnr_of(clean: np.ndarray, image: np.ndarray) -> float:
    return float(20 * np.log10(np.ptp(clean)) - 10 * np.log10(np.square(clean - image).mean()))


def test_a_run_denoises_other_volumes(run, stacks, tmp_path):
    tifffile.imwrite(tmp_path / "other.tif", stacks[1].pixels[:1], imagej=True, metadata={"axes": "TZYX"})
    exact: dict[str, Any] = dict(device="cpu", precision="fp32")
    copied = denoise(tmp_path / "other.tif", tmp_path / "out.tif", trained=run.path, **exact)
    expected = predict(run, stacks[1], **exact)[0]
    np.testing.assert_allclose(tifffile.imread(tmp_path / "out.tif"), expected, rtol=1e-5)
    assert (copied.path / "report.html").exists()


@pytest.mark.parametrize("name", ["out.tif", "out.ome.zarr"])
@pytest.mark.parametrize("axes", ["TZYX", "ZYTX"])
def test_files_have_the_axes_of_their_images(run, stacks, axes, name, tmp_path):
    noisy = Stack(stacks[1].pixels.transpose(["TZYX".index(a) for a in axes]), axes)
    expected = predict(run, stacks[1])
    written = predict(run, noisy, tmp_path / name)
    order = axes if name.endswith(".tif") else "TZYX"
    np.testing.assert_array_equal(np.asarray(written), expected.transpose(["TZYX".index(a) for a in order]))


def test_tiles_of_all_planes_give_the_whole_answer(run, tmp_path):
    noisy = Stack(observed((5, 150, 130))[1][0, 0].numpy(), "ZYX")
    whole = predict(run, noisy, precision="fp32")
    assert receptive_field(run.denoiser) == 25
    tiled = predict(run, noisy, tmp_path / "tiled.tif", tile=64, precision="fp32")
    np.testing.assert_allclose(tiled, whole, rtol=1e-5)
    drawn = predict(run, noisy, draws=2, tile=64, statistic="std")
    assert drawn.shape == whole.shape and (drawn > 0).all()
    with pytest.raises(UserError, match="the smallest tile needs"):
        predict(run, noisy, memory="0.23GB")


def test_a_stopped_prediction_goes_on(run, tmp_path, monkeypatch):
    noisy = Stack(observed((4, 140, 130))[1][0, 0].numpy(), "ZYX")
    whole = predict(run, noisy, tmp_path / "whole.tif", tile=64)
    denoised, calls = type(run.denoiser).maps, []

    def maps(self, images: Tensor):
        calls.append(images.shape)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return denoised(self, images)

    monkeypatch.setattr(type(run.denoiser), "maps", maps)
    with pytest.raises(KeyboardInterrupt):
        predict(run, noisy, tmp_path / "stopped.tif", tile=64)
    np.testing.assert_array_equal(predict(run, noisy, tmp_path / "stopped.tif", tile=64), whole)
    assert (
        len(calls) < 4 + 9
        and (tmp_path / "stopped.tif").read_bytes() == (tmp_path / "whole.tif").read_bytes()
    )


def test_an_interval_is_calibrated_and_other_losses_see_planes(stacks, tmp_path):
    clean, noisy = stacks
    quantiles = Quantiles()
    student = light(out_channels=len(quantiles.outputs))
    run = train(noisy, FIELD, student, quantiles, tmp_path / "run", steps=0, refine_steps=2, **SHORT)
    result = calibrate(run, noisy, clean, device="cpu")
    assert result.after == pytest.approx(result.level, abs=1e-3)
    prediction, draws = torch.randn(2, 2, 4, 16, 16), torch.randn(1, 2, 1, 4, 16, 16)
    planes = prediction.transpose(1, 2).flatten(0, 1), draws.transpose(2, 3).flatten(1, 2)
    assert EnergyScore()(prediction, draws) == EnergyScore()(*planes)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, "axes TYX of (6, 32, 40) have no Z of several planes, as networks with dims=3 need"),
        ({"axes": "ZYX", "student": StabilizedUNet()}, "dims: got 3 of HDN and 2 of StabilizedUNet"),
        ({"axes": "ZYX", "sampler": StabilizedSampler()}, "dims: got 2 of StabilizedSampler and 3 of Light"),
        ({"axes": "ZYX", "context": "Z1"}, "context: is of planes, but the networks have dims=3"),
        ({"axes": "ZYX", "conditions": np.ones((32, 40), "f4")}, "conditions: is of planes, but the"),
        ({"axes": "ZYX", "precision": "bf16"}, "precision: got bf16, but volumes are trained in fp32"),
    ],
)
def test_what_cannot_work_is_one_line_before_anything_is_written(options, told, tmp_path):
    options = {"sampler": hdn(), "student": light()} | options
    sampler, student = options.pop("sampler"), options.pop("student")
    with pytest.raises(UserError) as error:
        train(np.ones((6, 32, 40), "f4"), sampler, student, out=tmp_path / "run", **SHORT | options)
    assert told in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_what_is_for_images_alone_refuses_volumes(run, stacks, tmp_path):
    with pytest.raises(UserError, match="draws volumes, and a cache holds draws of planes"):
        cache_draws(run.path, stacks[1], tmp_path / "cache")
    with pytest.raises(UserError, match="have no Z of several planes"):
        predict(run, stacks[1].pixels[0, 0])
    assert not list(tmp_path.iterdir())


def test_gradients_of_volumes_are_in_float32_on_a_cpu():
    assert Hardware("cpu").for_training(3).precision == "fp32"
    assert Hardware("cpu").for_training(2).precision == "auto"


def test_by_command(stacks, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tifffile.imwrite("noisy.tif", stacks[1].pixels, imagej=True, metadata={"axes": "TZYX"})
    sampler = ["--sampler", "HDN", "--sampler.dims", "3", "--sampler.levels", "1", "--sampler.latents", "2",
               "--sampler.filters", "4", "--sampler.blocks", "1"]  # fmt: skip
    student = ["--student", "LightUNet", "--student.width", "8", "--student.depth", "1"]  # dims follow
    short = ["--steps", "1", "--refine_steps", "1", "--patch_size", "16", "--batch_size", "2"]
    assert main(["train", "noisy.tif", *sampler, *student, *short, "--out", "run", "--device", "cpu"]) == 0
    assert main(["predict", "run", "noisy.tif", "--out", "out.tif"]) == 0
    assert tifffile.imread("out.tif").shape == (2, 6, 32, 40)
    capsys.readouterr()
    assert main(["info", "run"]) == 0
    assert capsys.readouterr().out.count("dims=3") == 2
    assert Path("run/preview.png").exists()


@pytest.mark.slow
def test_a_student_of_a_field_in_three_dimensions_reaches_its_wiener_filter(tmp_path):
    torch.manual_seed(0)
    clean, noisy = observed((12, 48, 48), n=8)
    stack = Stack(noisy[:, 0].numpy(), "TZYX")

    def draw(images: Tensor, n: int) -> Tensor:  # of volumes of any size: patches are not periodic
        return FIELD.sample(images, n)

    student = LightUNet(dims=3, width=16, depth=1, unshuffle=1)
    train(
        stack, FunctionSampler(draw, dims=3), student, L2(), tmp_path / "run", steps=0, refine_steps=120,
        batch_size=4, patch_size=24, draws=4, device="cpu",
    )  # fmt: skip
    inner = (..., slice(3, -3), slice(12, -12), slice(12, -12))
    denoiser = load_denoiser(tmp_path / "run")
    with torch.inference_mode():
        error = (denoiser(noisy) - FIELD.posterior_mean(noisy))[inner].square().mean()
    posterior = (FIELD.posterior_mean(noisy) - clean)[inner].square().mean()
    assert error < 0.2 * posterior, float(error / posterior)  # which no estimate can be rid of
