"""Networks that see neighbouring planes, and denoise the one between them."""

from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from torch import nn

from distill import UserError, cache_draws, evaluate, export, load_denoiser, predict, read, train
from distill.images.context import in_context, plane_count
from distill.images.sources import as_stack
from distill.images.stack import Stack
from samplers import HDN, DivNoising, FunctionSampler, GaussianNoise, StabilizedSampler
from samplers.testing import check_sampler
from students import LightUNet, StabilizedUNet, UNet

TINY: dict[str, Any] = dict(depth=1, filters=4)
SHORT: dict[str, Any] = dict(
    steps=0, refine_steps=3, batch_size=2, micro_batch=2, patch_size=16, validate_every=2
)
HIERARCHY: dict[str, Any] = dict(levels=2, latents=2, filters=4, blocks=1, patch_size=16)


def mean_of_planes(noisy):
    """Draws around the mean of a plane and its neighbours, three in all."""
    return noisy.mean(1, keepdim=True) + torch.randn_like(noisy[:, :1])


AVERAGING = FunctionSampler(mean_of_planes, out_channels=1)


def test_frames_are_planes_and_their_neighbours_mirrored_at_the_ends():
    frames = in_context(as_stack(np.arange(5.0).reshape(5, 1, 1) * np.ones((5, 3, 4))), "T2").frames
    assert frames.shape == (5, 5, 3, 4) and len(frames) == 5
    order = [[0, 1, 1, 2, 2], [1, 0, 2, 1, 3], [2, 1, 3, 0, 4], [3, 2, 4, 1, 3], [4, 3, 3, 2, 2]]
    assert frames[:, :, :1, :1][..., 0, 0].tolist() == order
    assert frames[3].shape == (5, 3, 4) and frames[3, 1:, 1:, :2].shape == (4, 2, 2)
    assert frames[0:0, 1:, :2, :3].shape == (0, 4, 2, 3) and frames[0:0].shape == (0, 5, 3, 4)
    assert frames[np.array([4, 0]), :, :1, :1][..., 0, 0].tolist() == [order[4], order[0]]
    assert in_context(as_stack(np.zeros((2, 3, 4))), "T9").frames[0].shape == (19, 3, 4)


def test_neighbours_are_along_the_axis_and_channels_stay_together():
    pixels = np.arange(2 * 3 * 4 * 2).reshape(2, 3, 4, 2)[..., None, None] * np.ones((5, 6))  # T Z... C
    stack = Stack(pixels, "STZCYX")
    frames = in_context(stack, "Z1").frames
    assert frames.shape == (24, 6, 5, 6)
    frame = 2 * 4 + 1  # S 0, T 2, Z 1
    expected = np.concatenate([pixels[0, 2, z] for z in (1, 0, 2)])
    assert np.array_equal(frames[frame], expected)
    expected = np.concatenate([pixels[0, t, 1] for t in (2, 1, 1)])
    assert np.array_equal(in_context(stack, "T1").frames[frame], expected)


@pytest.mark.parametrize(
    ("context", "axes", "told"),
    [
        ("T", "TYX", "context: got 'T', must be an axis and how many planes"),
        ("C1", "TYX", "context: got 'C1'"),
        ("T0", "TYX", "context: got 'T0'"),
        ("Z1", "TYX", "have no neighbouring planes along Z, as context Z1 needs"),
        ("T1", "ZYX", "along T"),
    ],
)
def test_what_has_no_context_is_one_line(context, axes, told, tmp_path, noisy):
    with pytest.raises(UserError, match=told) as error:
        train(noisy, AVERAGING, UNet(3, **TINY), out=tmp_path / "run", axes=axes, context=context, **SHORT)
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("sampler", "student", "told"),
    [
        (StabilizedSampler(), LightUNet(3), "StabilizedSampler sees single planes; pass --sampler HDN"),
        (
            AVERAGING,
            StabilizedUNet(),
            "StabilizedUNet sees single planes; pass .* --student LightUNet",
        ),
        (HDN(GaussianNoise(10.0), **HIERARCHY), LightUNet(3), "HDN: got images of 3 channels, made for 1"),
        (AVERAGING, UNet(1, **TINY), "set its in_channels"),
        (FunctionSampler(lambda noisy: noisy), UNet(3, **TINY), "FunctionSampler.sample: got shape"),
    ],
)
def test_networks_without_one_are_told(sampler, student, told, tmp_path, noisy):
    with pytest.raises(UserError, match=told) as error:
        train(noisy, sampler, student, out=tmp_path / "run", context="T1", **(SHORT | {"steps": 1}))
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


def test_a_student_of_planes_the_whole_way(tmp_path, noisy):
    """A 1x1 convolution over three planes learns their mean, which no plane alone tells."""
    options: dict[str, Any] = SHORT | {"refine_steps": 150, "batch_size": 8, "student_lr": 0.05, "ema": 0.9}
    run = train(noisy, AVERAGING, nn.Conv2d(3, 1, 1), out=tmp_path / "run", context="T1", **options)
    seen = torch.from_numpy(in_context(as_stack(noisy), "T1").frames[:])
    expected = seen.mean(1).numpy()
    assert run.denoiser.out_mean.equal(run.denoiser.mean[:1]) and len(run.denoiser.mean) == 3

    answer = predict(run, noisy, precision="fp32")
    assert answer.shape == noisy.shape and ((answer - expected) ** 2).mean() < 0.02 * expected.var()
    tifffile.imwrite(tmp_path / "noisy.tif", noisy, imagej=True, metadata={"axes": "TYX"})
    for name in ("out.tif", "out.ome.zarr"):
        predict(run, tmp_path / "noisy.tif", tmp_path / name, tile=64, precision="fp32")
        assert np.allclose(read(tmp_path / name).frames[:, 0], answer, atol=1e-3)
    draws = predict(run, noisy, draws=4, precision="fp32")
    assert abs(draws - expected).max() < 6 / 4**0.5

    rows = {row["image"]: row for row in evaluate(run, noisy, expected, draws=[2])}
    assert list(rows) == ["noisy input", "2 draws", "student"]
    span = np.ptp(expected, axis=(1, 2))  # PSNR has the range of each frame
    assert rows["2 draws"]["psnr_mean"] == pytest.approx(
        20 * np.log10(span).mean() - 10 * np.log10(0.5), abs=0.3
    )
    assert "residual_std" in evaluate(run, noisy, out=tmp_path / "without", draws=[2])[1]
    with pytest.raises(UserError, match="have no neighbouring planes along T"):
        predict(run, noisy[0])
    with pytest.raises(UserError, match="context"):
        train(noisy, AVERAGING, nn.Conv2d(3, 1, 1), out=tmp_path / "run", context="Z1", axes="ZYX", **options)


def test_a_context_is_stored_with_the_run_and_a_stopped_one_resumes(tmp_path, noisy):
    whole = train(noisy, AVERAGING, UNet(3, **TINY), out=tmp_path / "whole", context="T1",
                  **(SHORT | {"refine_steps": 5}))  # fmt: skip
    assert load_denoiser(tmp_path / "whole").context == whole.sampler.context == "T1"
    sampler = cache_draws(whole, noisy, tmp_path / "draws", draws=2)
    assert sampler.out_channels == 1
    seen = in_context(as_stack(noisy), "T1").frames
    drawn = sampler.sample(torch.from_numpy(sampler.training_images(seen)[1, :, :, :])[None], 2)
    assert (drawn[:, 0, 0] - seen[1].mean(0)).abs().max() < 6
    run = train(noisy, sampler, UNet(3, **TINY), out=tmp_path / "cached", context="T1", **SHORT)
    assert run.denoiser.out_mean.equal(run.denoiser.mean[:1])


@pytest.mark.parametrize("kind", [HDN, DivNoising])
def test_samplers_that_explain_all_planes_and_draw_one(kind):
    options: dict[str, Any] = HIERARCHY if kind is HDN else {"filters": 4, "latents": 4}
    sampler = kind(GaussianNoise(9.0), channels=2, in_channels=6, **options)
    check_sampler(sampler)
    noisy = 100 + 10 * torch.randn(2, 6, 16, 16)
    assert sampler.sample(noisy, 3).shape == (3, 2, 2, 16, 16)
    torch.manual_seed(1)
    features = sampler.eval().encode(noisy)
    signal, kl = sampler.vae.decode(features, 16, 16)
    torch.manual_seed(1)
    loss, draw = sampler.training_step(noisy)
    # Without a likelihood of the neighbours, the encoder that is best in the ELBO would ignore them.
    assert draw.equal(signal[:, :2])
    likelihood = GaussianNoise(9.0).log_likelihood(noisy, signal).mean()
    assert loss.item() == pytest.approx(
        (sampler.kl_cost(kl) / noisy[0].numel() - likelihood).item(), rel=1e-5
    )
    with pytest.raises(ValueError, match="sees 6 with those of its context"):
        sampler.sample(noisy[:, :2])
    plain = kind(GaussianNoise(9.0), channels=2, **options)
    assert plain.out_channels is None and plain.in_channels == 2


def test_co_training_with_a_context(tmp_path, noisy):
    sampler = HDN(in_channels=3, kl_warmup=2, **HIERARCHY)  # which estimates the noise of the plane itself
    run = train(noisy, sampler, UNet(3, **TINY), out=tmp_path / "run", context="T1",
                **(SHORT | {"steps": 2, "refine_steps": 1}))  # fmt: skip
    for draws in (0, 2):
        assert predict(tmp_path / "run", noisy, draws=draws).shape == noisy.shape
    assert run.sampler.mean.shape == (1, 1, 1)


def test_exported_with_its_planes(tmp_path, noisy):
    runtime = pytest.importorskip("onnxruntime")
    run = train(noisy, AVERAGING, UNet(3, **TINY), out=tmp_path / "run", context="T1", **SHORT)
    path = export(run, tmp_path / "student.onnx")
    seen = in_context(as_stack(noisy), "T1").frames[1][None]
    (answer,) = runtime.InferenceSession(path).run(None, {"noisy": seen})
    assert np.allclose(answer[0, 0], predict(run, noisy, precision="fp32")[1], atol=0.01)
    assert plane_count("T1") == seen.shape[1]
