"""Samplers whose clean images have other channels or another size than the noisy one, the whole way."""

import json
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from torch import nn

from distill import (
    DirectDenoiser,
    UserError,
    cache_draws,
    evaluate,
    export,
    load_denoiser,
    predict,
    read,
    report,
    train,
)
from distill.images.enlarged import Repeated, like_output
from distill.images.sources import as_stack
from distill.prediction.receptive_field import receptive_field
from distill.runs.checkpoint import save_denoiser
from losses import L2, MeanVariance
from samplers import CachedDraws, FunctionSampler
from students import LightUNet, NoiseConditioned, StabilizedUNet, UNet
from students.upscale import Nearest

WEIGHTS = torch.tensor([0.5, 0.3, 2.0])[:, None, None]
OFFSETS = torch.tensor([0.0, 40.0, -70.0])[:, None, None]
TINY: dict[str, Any] = dict(depth=1, filters=4)
SHORT: dict[str, Any] = dict(
    steps=0, refine_steps=3, batch_size=2, micro_batch=2, patch_size=16, validate_every=2
)


def parts(noisy):
    """What the draws of `unmixed` are around."""
    return WEIGHTS * noisy + OFFSETS


def unmixed(noisy):
    mean = parts(noisy)
    return mean + torch.randn_like(mean)


UNMIXING = FunctionSampler(unmixed, out_channels=3, out_names=("nuclei", "actin", "tubulin"))


def enlarging(scale):
    def enlarged(noisy):
        large = Nearest(scale)(noisy)
        return large + torch.randn_like(large)

    return FunctionSampler(enlarged, scale=scale)


def of(kind) -> tuple[Any, dict[str, Any], tuple[int, ...]]:
    """(sampler, student's arguments, C', Y and X of the answer to 48 x 40 pixels)"""
    if kind == "unmixing":
        return UNMIXING, {"out_channels": 3}, (3, 48, 40)
    return enlarging(kind), {"scale": kind}, (1, 48 * Nearest(kind).y, 40 * Nearest(kind).x)


KINDS = ["unmixing", 2, (1, 2)]


def trained(kind, noisy, out):
    sampler, arguments, _ = of(kind)
    return train(noisy, sampler, UNet(**arguments, **TINY), out=out, **SHORT)


def answer(denoiser, noisy):
    with torch.no_grad():
        return denoiser(torch.from_numpy(noisy[:, None])).numpy()


@pytest.mark.parametrize("kind", KINDS)
def test_written_images_have_their_pixels_sizes_and_names(kind, tmp_path, noisy):
    _, _, shape = of(kind)
    run = trained(kind, noisy, tmp_path / "run")
    assert (tmp_path / "run" / "preview.png").stat().st_size
    expected = answer(load_denoiser(tmp_path / "run"), noisy)
    assert expected.shape == (4, *shape) and np.allclose(expected, answer(run.denoiser, noisy), atol=1e-3)
    pixel = {"PhysicalSizeX": 0.4, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": 0.4, "PhysicalSizeYUnit": "µm"}
    path = tmp_path / "noisy.ome.tif"
    tifffile.imwrite(path, noisy, metadata={"axes": "TYX"} | pixel)
    assert np.allclose(predict(run, path, precision="fp32").reshape(expected.shape), expected, atol=1e-2)
    for name in ("out.ome.tif", "out.tif", "out.ome.zarr"):
        predict(run, path, tmp_path / name, precision="fp32", chunks=16 if "zarr" in name else None)
        written = read(tmp_path / name)
        assert np.allclose(written.frames[:], expected, atol=1e-2)
        assert written.pixel_size["y"] == pytest.approx(0.4 * 48 / shape[1])
        assert written.pixel_size["x"] == pytest.approx(0.4 * 40 / shape[2])
        if kind == "unmixing" and "ome" in name:
            assert written.extra["Channel"]["Name"] == ["nuclei", "actin", "tubulin"]


@pytest.mark.parametrize("kind", ["unmixing", (1, 2)])
def test_evaluated_against_a_truth_of_the_output_shape_and_without(kind, tmp_path, noisy):
    sampler, _, _ = of(kind)
    run = trained(kind, noisy, tmp_path / "run")
    truth = as_stack(sampler.sample(torch.from_numpy(noisy[:, None]))[0], "TCYX")
    rows = {row["image"]: row for row in evaluate(run, noisy, truth, draws=[1, 4])}
    assert list(rows) == ["1 draw", "4 draws", "student"]
    gain = 10 * np.log10(2 / 1.25)  # one draw against another, of std 1 each; and the mean of 4
    one, four = (float(rows[name]["psnr_mean"]) for name in ("1 draw", "4 draws"))
    assert four - one == pytest.approx(gain, abs=0.1)
    assert report(run).exists()
    rows = evaluate(run, noisy, out=tmp_path / "without", draws=[2])
    assert [row["image"] for row in rows] == ["2 draws", "student"]
    with pytest.raises(UserError, match=r"clean: got frames .* pass one frame, or as many, of \(C, \*S\)"):
        evaluate(run, noisy, noisy, tmp_path / "wrong", draws=[1])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["out.tif", "out.ome.zarr"])
def test_tiles_are_the_whole(kind, name, tmp_path):
    sampler, arguments, _ = of(kind)
    noisy = np.random.default_rng(0).normal(100, 10, (2, 150, 200)).astype(np.float32)
    shape = sampler.out_channels, sampler.scale
    denoiser = DirectDenoiser(UNet(**arguments, **TINY), L2(), 1, *shape).eval()
    denoiser.prepare(torch.tensor([[[100.0]]]), torch.tensor([[[10.0]]]))
    plain = receptive_field(DirectDenoiser(UNet(**TINY), L2()))
    assert plain is not None and receptive_field(denoiser) in (plain, plain + 1)  # in pixels of the input
    whole = predict(denoiser, noisy, precision="fp32")
    options: dict[str, Any] = {"chunks": 48} if "zarr" in name else {}
    predict(denoiser, noisy, tmp_path / name, tile=64, precision="fp32", **options)
    tiled = read(tmp_path / name).frames[:]
    assert np.allclose(tiled, whole.reshape(tiled.shape), atol=1e-4 * np.ptp(whole))


def test_draws_of_a_sampler_are_averaged_in_its_own_shape(tmp_path, noisy):
    mean = predict(UNMIXING, noisy, tmp_path / "mean.tif", draws=3)
    assert mean.shape == (4, 3, 48, 40)
    expected = parts(torch.from_numpy(noisy[:, None])).numpy()
    assert abs(mean - expected).max() < 6 / 3**0.5
    assert predict(enlarging(2), noisy, draws=2, statistic="std").shape == (4, 96, 80)


def test_each_channel_has_statistics_of_its_own(tmp_path, noisy):
    run = train(noisy, UNMIXING, UNet(out_channels=3, **TINY), out=tmp_path / "run", **SHORT)
    # of 64 patches of 3 frames, while the input's are of all pixels
    mean, std = run.denoiser.mean, run.denoiser.std
    assert ((run.denoiser.out_mean - (WEIGHTS * mean + OFFSETS)).abs() < 0.15 * WEIGHTS * std).all()
    assert torch.allclose(run.denoiser.out_std, ((WEIGHTS * std) ** 2 + 1).sqrt(), rtol=0.15)
    longer = train(noisy, UNMIXING, UNet(out_channels=3, **TINY), out=tmp_path / "run",
                   **(SHORT | {"refine_steps": 4}))  # fmt: skip
    assert longer.denoiser.out_mean.equal(run.denoiser.out_mean)


def test_the_student_learns_what_the_draws_are_around(tmp_path, noisy):
    options: dict[str, Any] = SHORT | {
        "refine_steps": 100,
        "batch_size": 4,
        "validate_every": 1000,
        "student_lr": 0.05,
    }
    run = train(noisy, UNMIXING, nn.Conv2d(1, 3, 1), out=tmp_path / "run", ema=0.9, **options)
    expected = parts(torch.from_numpy(noisy[:, None])).numpy()
    error = predict(run, noisy, precision="fp32") - expected
    assert ((error**2).mean((0, 2, 3)) < 0.01 * expected.var((0, 2, 3))).all()


def test_images_of_the_same_shape_keep_the_statistics_of_the_input():
    denoiser = DirectDenoiser(UNet(**TINY), L2())
    assert denoiser.out_mean is denoiser.mean and denoiser.out_std is denoiser.std
    assert not [name for name in denoiser.state_dict() if name.startswith("own")]


def test_a_std_is_in_the_counts_of_its_channel(tmp_path, noisy):
    student = UNet(out_channels=6, **TINY)
    run = train(noisy, UNMIXING, student, MeanVariance(), tmp_path / "run", **SHORT)
    predict(run, noisy, tmp_path / "out.tif", precision="fp32")
    image = torch.from_numpy(noisy[:1, None])
    with torch.no_grad():
        std = run.denoiser.loss.maps(run.denoiser.predict(image))["std"] * run.denoiser.out_std
    assert np.allclose(tifffile.imread(tmp_path / "out_std.tif")[0], std[0].numpy(), rtol=1e-3)


@pytest.mark.parametrize(
    ("sampler", "student", "told"),
    [
        (
            FunctionSampler(unmixed),
            UNet(out_channels=3, **TINY),
            "must be .* set its out_channels and scale",
        ),
        (UNMIXING, UNet(out_channels=2, **TINY), "UNet: gives shape .* set its out_channels to 3"),
        (enlarging(2), UNet(**TINY), r"UNet: gives images .* set its scale to \[2, 2\]"),
        (enlarging(2), UNet(scale=4, **TINY), r"set its scale to \[2, 2\]"),
        (UNMIXING, StabilizedUNet(1, 3), "student: got StabilizedUNet, .* pass --student LightUNet, or UNet"),
    ],
)
def test_a_misfit_is_told_before_anything_is_written(sampler, student, told, tmp_path, noisy):
    with pytest.raises(UserError, match=told) as error:
        train(noisy, sampler, student, out=tmp_path / "run", **SHORT)
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_a_cache_of_draws(kind, tmp_path, noisy):
    sampler, arguments, shape = of(kind)
    cached = cache_draws(sampler, noisy, tmp_path / "draws", draws=3)
    frames = cached.training_images(as_stack(noisy).frames)
    patch = torch.from_numpy(frames[1, :, 8:24, 16:32])[None]
    drawn = cached.sample(patch, 3)
    assert (
        drawn.shape == (3, 1, *sampler.draw_shape((1, 1, 16, 16))[1:])
        and cached.draw_shape((1, 1, 48, 40))[1:] == shape
    )
    around = parts(patch[:, :1]) if kind == "unmixing" else Nearest(kind)(patch[:, :1])
    assert (drawn - around).abs().max() < 6  # of std 1, in the right places
    run = train(noisy, cached, UNet(**arguments, **TINY), out=tmp_path / "run", **SHORT)
    assert predict(run, noisy).size == 4 * np.prod(shape)
    assert CachedDraws(str(tmp_path / "draws")).out_names == sampler.out_names


@pytest.mark.parametrize("kind", ["unmixing", (1, 2)])
def test_exported(kind, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    sampler, arguments, _ = of(kind)
    shape = sampler.out_channels, sampler.scale
    denoiser = DirectDenoiser(LightUNet(width=4, depth=1, **arguments), L2(), 1, *shape).eval()
    path = export(denoiser, tmp_path / "student.onnx")
    noisy = torch.rand(1, 1, 13, 9)
    (answer,) = runtime.InferenceSession(path).run(None, {"noisy": noisy.numpy()})
    with torch.no_grad():
        assert np.allclose(answer, denoiser(noisy).numpy(), atol=1e-4)


def test_packed_for_bioimage_io(tmp_path):
    pytest.importorskip("bioimageio.core")
    denoiser = DirectDenoiser(
        LightUNet(1, 2, width=4, depth=1, scale=(1, 2)), L2(), 1, 2, (1, 2), ("a", "b")
    ).eval()
    assert export(
        denoiser, tmp_path / "student.zip", format="bioimageio", license="MIT"
    ).exists()  # bioimageio.core has tested it


def test_a_file_that_describes_no_images_is_refused(tmp_path):
    from distill.runs import tensors

    denoiser = DirectDenoiser(UNet(scale=2, **TINY), L2(), 1, None, 2)
    path = tmp_path / "student.safetensors"
    save_denoiser(path, denoiser)
    weights, header = tensors.load(path)
    assert load_denoiser(path).scale == (2, 2) and json.dumps(header)
    for wrong in (
        {"scale": [0, 2]},
        {"scale": "2"},
        {"out_channels": -1},
        {"out_names": [1]},
        {"out_names": ["a", "b"]},
    ):
        tensors.save(path, weights, header | wrong)
        with pytest.raises(UserError, match=r"scale: got|describes no images|out_names: got"):
            load_denoiser(path)


def test_noise_conditioned_students_of_another_shape(tmp_path, noisy):
    from losses import EnergyScore

    student = NoiseConditioned(LightUNet(3, 3, width=4, depth=1), samples=2)
    run = train(noisy, UNMIXING, student, EnergyScore(samples=2), tmp_path / "run", **SHORT)
    assert predict(run, noisy).shape == (4, 3, 48, 40)


def test_an_enlarged_image_is_read_where_it_is_looked_at():
    pixels = np.arange(2 * 3 * 4 * 5).reshape(2, 4, 3, 5)  # T Y C X
    large = Repeated(pixels, "TYCX", (2, 3))
    expected = pixels.repeat(2, 1).repeat(3, 3)
    assert large.shape == expected.shape
    for key in np.s_[:, :, :, :], np.s_[1, 3:7, :, 4:9], np.s_[0, 1, 2, 3], np.s_[:, 5, 0:2, ::2]:
        assert np.array_equal(large[key], expected[key])
    like = like_output(as_stack(pixels, "TYCX"), (2, 3), ())
    assert np.array_equal(like.frames[1], expected[1].transpose(1, 0, 2))
