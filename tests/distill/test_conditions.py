"""Networks that are told something beside the noisy image: a mask of known pixels, the level of the noise."""

from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from torch import Tensor, nn

from distill import UserError, cache_draws, evaluate, export, load_denoiser, predict, read, train
from distill.images.conditions import conditioned, seen_by
from distill.images.context import in_context
from distill.images.sources import as_stack
from distill.prediction.blocks import Prediction
from samplers import (
    HDN,
    CachedDraws,
    DiffusionSampler,
    Ensemble,
    FlowMatching,
    FunctionSampler,
    GaussianNoise,
    MonteCarloDropout,
    StabilizedSampler,
)
from samplers.testing import check_sampler
from students import LightUNet, StabilizedUNet, UNet

MEAN, STD, SPREAD = 200.0, 40.0, 5.0  # counts: of the prior of every pixel, and of draws
TINY: dict[str, Any] = dict(depth=1, filters=4)
SHORT: dict[str, Any] = dict(
    steps=0, refine_steps=3, batch_size=2, micro_batch=2, patch_size=16, validate_every=2
)
LONG: dict[str, Any] = SHORT | dict(
    refine_steps=160, batch_size=4, micro_batch=4, validate_every=400, student_lr=0.2, ema=0.9, val_fraction=0
)


def shrunk(noisy: Tensor) -> Tensor:
    """Draws around the posterior mean of independent pixels: MEAN + weight * (noisy - MEAN), the weight being
    STD^2 / (STD^2 + noise^2), or 0 where a pixel is missing."""
    images, weight = noisy.tensor_split(2, dim=1)
    return MEAN + weight * (images - MEAN) + SPREAD * torch.randn_like(images)


class Product(nn.Module):
    """A linear network of one pixel, of the weight, and of their product: the answer is among those."""

    def __init__(self) -> None:
        super().__init__()
        self.of = nn.Conv2d(3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.of(torch.cat([x, x[:, :1] * x[:, 1:]], dim=1))


def measured(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(noisy, mask, exact): 2 frames of 96 x 80 px without structure, of which 40 % of the pixels show other
    values of the same kind, so that the mask alone tells them."""
    noisy = MEAN + STD * np.random.default_rng(seed).standard_normal((2, 96, 80)).astype(np.float32)
    mask = (np.random.default_rng(9).random((96, 80)) < 0.6).astype(np.uint8)
    return noisy, mask, MEAN + mask * (noisy - MEAN)


def error(answer: np.ndarray, exact: np.ndarray) -> float:
    """In units of the std of the exact answer."""
    return float(np.sqrt(((answer - exact) ** 2).mean()) / exact.std())


def test_frames_are_images_and_their_maps():
    images, mask = np.arange(5.0).reshape(5, 1, 1) * np.ones((5, 6, 4)), np.arange(24).reshape(6, 4)
    frames = conditioned(as_stack(images), mask).frames
    assert frames.shape == (5, 2, 6, 4) and frames.dtype == np.float64
    assert np.array_equal(frames[3], np.stack([images[3], mask]))
    assert np.array_equal(frames[3, :, 2:5, :1], frames[3][:, 2:5, :1])
    assert np.array_equal(frames[np.array([4, 0]), 1:], np.stack([mask, mask])[:, None])
    assert np.array_equal(frames[1:3, :, 1:], frames[:][1:3, :, 1:])
    one_each = 10 * images
    frames = conditioned(in_context(as_stack(images), "T1"), one_each).frames
    assert frames[1, :, :1, :1].ravel().tolist() == [1, 0, 2, 10] and frames.shape == (5, 4, 6, 4)
    several = conditioned(as_stack(images), np.stack([mask, 2 * mask])[None]).frames
    assert several.shape == (5, 3, 6, 4) and np.array_equal(several[4, 2], 2 * mask)


def test_a_mask_the_whole_way(tmp_path):
    noisy, mask, _ = measured()
    run = train(noisy, FunctionSampler(shrunk), Product(), out=tmp_path / "run", conditions=mask, **LONG)
    assert run.denoiser.mean[1:].eq(0).all() and run.denoiser.std[1:].eq(1).all()
    assert not run.denoiser.reshapes and run.denoiser.out_channels == 1
    new, _, wanted = measured(1)
    answer = predict(run, new, precision="fp32", conditions=mask)
    assert error(answer, wanted) < 0.02

    blind = FunctionSampler(lambda noisy: shrunk(torch.cat([noisy, torch.ones_like(noisy)], 1)))
    sees_all = train(noisy, blind, nn.Conv2d(1, 1, 1), out=tmp_path / "blind", **LONG)
    assert error(predict(sees_all, new, precision="fp32"), wanted) > 0.7
    # The best without the mask keeps 0.6 of each pixel: its error is the std of the mask, times STD.
    assert error(MEAN + 0.6 * (new - MEAN), wanted) == pytest.approx((0.24 / 0.6) ** 0.5, rel=0.05)

    for name, image in {"new.tif": new, "mask.tif": mask}.items():
        tifffile.imwrite(tmp_path / name, image, imagej=True, metadata={"axes": "TYX"[3 - image.ndim :]})
    files: dict[str, Any] = {"conditions": tmp_path / "mask.tif", "precision": "fp32"}
    for name in ("out.tif", "out.ome.zarr"):
        predict(run, tmp_path / "new.tif", tmp_path / name, tile=64, **files)
        assert np.allclose(read(tmp_path / name).frames[:, 0], answer, atol=1e-3)
    draws = predict(run, new, draws=16, **files)
    assert error(draws, wanted) == pytest.approx(SPREAD / 4 / wanted.std(), rel=0.1)

    rows = {row["image"]: row for row in evaluate(run, new, wanted, draws=[1], **files)}
    assert list(rows) == ["noisy input", "1 draw", "student"]
    assert rows["student"]["psnr_mean"] > rows["1 draw"]["psnr_mean"] + 10
    assert "residual_std" in evaluate(run, new, out=tmp_path / "without", draws=[2], **files)[1]


def test_noise_of_another_level_in_each_frame(tmp_path):
    rng = np.random.default_rng(0)
    noise = np.array([10.0, 40.0, 80.0])[:, None, None]
    noisy = MEAN + np.hypot(STD, noise) * rng.standard_normal((3, 48, 48))
    weight = STD**2 / (STD**2 + noise**2) * np.ones_like(noisy)
    run = train(noisy, FunctionSampler(shrunk), Product(), out=tmp_path / "run", conditions=weight, **LONG)
    answer = predict(run, noisy, precision="fp32", conditions=weight)
    slopes = [np.polyfit(x.ravel(), y.ravel(), 1)[0] for x, y in zip(noisy, answer, strict=True)]
    assert slopes == pytest.approx(weight[:, 0, 0], abs=0.02)


def test_stored_with_the_run(tmp_path, noisy):
    mask = (noisy > 200).astype(np.float32)
    options = SHORT | {"out": tmp_path / "run", "conditions": mask}
    sampler = FunctionSampler(shrunk)
    run = train(noisy, sampler, UNet(2, **TINY), **options)
    stored = load_denoiser(tmp_path / "run")
    assert stored.conditions == run.sampler.conditions == 1 and stored.plane_channels == 1
    assert "conditions" not in train(noisy, FunctionSampler(lambda x: x), UNet(**TINY), out=tmp_path / "no",
                                     **SHORT).denoiser.state_dict()  # fmt: skip
    longer = train(noisy, sampler, UNet(2, **TINY), **(options | {"refine_steps": 5}))
    whole = train(noisy, sampler, UNet(2, **TINY), **(options | {"refine_steps": 3, "out": tmp_path / "2"}))
    assert longer.path == run.path and whole.denoiser.conditions == 1
    with pytest.raises(UserError, match="holds a run with conditions="):
        train(noisy, sampler, UNet(2, **TINY), **(options | {"refine_steps": 5, "conditions": 1 - mask}))

    cached = cache_draws(run, noisy, tmp_path / "draws", draws=2, conditions=mask)
    train(noisy, cached, UNet(2, **TINY), **(options | {"out": tmp_path / "cached"}))
    with pytest.raises(UserError, match="not of these images"):
        train(noisy, CachedDraws(str(tmp_path / "draws")), UNet(**TINY), out=tmp_path / "other", **SHORT)


def test_exported_with_its_conditions(tmp_path, noisy):
    runtime = pytest.importorskip("onnxruntime")
    mask = np.ones((48, 40), bool)
    run = train(
        noisy, FunctionSampler(shrunk), UNet(2, **TINY), out=tmp_path / "run", conditions=mask, **SHORT
    )
    seen = conditioned(as_stack(noisy), mask).frames[1][None]
    (answer,) = runtime.InferenceSession(export(run, tmp_path / "student.onnx")).run(None, {"noisy": seen})
    expected = predict(run, noisy, precision="fp32", conditions=mask)[1]
    assert np.allclose(answer[0, 0], expected, atol=0.01)


def test_what_does_not_fit_is_one_line(tmp_path, noisy):
    run = train(noisy, FunctionSampler(shrunk), UNet(2, **TINY), out=tmp_path / "run",
                conditions=np.ones((48, 40)), **SHORT)  # fmt: skip
    plain = train(noisy, FunctionSampler(lambda x: x), UNet(**TINY), out=tmp_path / "plain", **SHORT)
    nan = np.full((48, 40), np.nan)
    for call, told in {
        lambda: predict(run, noisy): "conditions: got none, but .*run needs 1, such as",
        lambda: evaluate(run, noisy): "pass --conditions with 1 channel",
        lambda: cache_draws(run, noisy, tmp_path / "draws"): "conditions: got none, but",
        lambda: predict(run, noisy, conditions=np.ones((1, 2, 48, 40))): "got 2, but .* needs 1",
        lambda: predict(run, noisy, conditions=np.ones((48, 41))): r"got frames \(1, 1, 48, 41\)",
        lambda: predict(run, noisy, conditions=np.ones((3, 48, 40))): "pass one frame, or \\d+, of",
        lambda: predict(run, noisy, conditions=nan): "are NaN",
        lambda: predict(plain, noisy, conditions=np.ones((48, 40))): "uses the image only; pass none",
        lambda: train(noisy, run.sampler, UNet(**TINY), out=tmp_path / "new", **SHORT): "Sampler needs 1",
    }.items():  # fmt: skip
        with pytest.raises(UserError, match=told) as raised:
            call()
        assert "\n" not in str(raised.value)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("sampler", "student", "options", "told"),
    [
        (StabilizedSampler(), LightUNet(2), {}, "StabilizedSampler takes none; pass a sampler that takes"),
        (FunctionSampler(shrunk), StabilizedUNet(), {}, "StabilizedUNet takes none"),
        (HDN(GaussianNoise(10.0), levels=2, filters=4, blocks=1), LightUNet(2), {}, "HDN takes none"),
        (FlowMatching(nn.Identity()), LightUNet(2), {}, "FlowMatching takes none"),
        (FunctionSampler(shrunk), UNet(1, **TINY), {}, "set its in_channels"),
        (FunctionSampler(lambda noisy: noisy), UNet(2, **TINY), {}, "FunctionSampler.sample: got shape"),
        (FunctionSampler(shrunk), UNet(2, **TINY), {"self_supervised": 0.5}, "self_supervised: got 0.5"),
    ],
)  # fmt: skip
def test_networks_without_conditions_are_told(sampler, student, options, told, tmp_path, noisy):
    with pytest.raises(UserError, match=told) as raised:
        train(noisy, sampler, student, out=tmp_path / "run", conditions=np.ones((48, 40)), **SHORT, **options)
    assert "\n" not in str(raised.value) and not (tmp_path / "run").exists()


def test_conditions_with_a_context(tmp_path, noisy):
    sampler = FunctionSampler(lambda seen: seen[:, :3].mean(1, keepdim=True) * seen[:, 3:], out_channels=1)
    run = train(noisy, sampler, UNet(4, **TINY), out=tmp_path / "run", context="T1",
                conditions=np.ones((48, 40)), **SHORT)  # fmt: skip
    assert run.denoiser.plane_channels == 1 and run.denoiser.mean.flatten().tolist()[3] == 0
    assert predict(run, noisy, draws=1, conditions=np.ones((48, 40))).shape == noisy.shape
    assert seen_by(run.sampler, "run", as_stack(noisy), noisy).frames.shape == (4, 4, 48, 40)
    assert Prediction(run.denoiser, noisy, conditions=noisy).stack.frames.shape == (4, 4, 48, 40)


class Masked(nn.Module):
    """What a reconstructor of deepinv is to DiffusionSampler: it draws where the physics has no pixel."""

    def forward(self, y: Tensor, physics: Any) -> Tensor:
        return torch.where(physics.mask > 0, y, torch.rand_like(y))


class Physics(nn.Module):
    def __init__(self, y: Tensor, mask: Tensor) -> None:
        super().__init__()
        assert y.shape == mask.shape
        self.mask = mask


def test_conditions_keep_their_units():
    noisy, mask, _ = (torch.from_numpy(each).float() for each in measured())
    seen = torch.stack([noisy[0], mask])[None]
    diffusion = DiffusionSampler(Masked(), black=100, white=300, physics=Physics)
    diffusion.conditions = 1
    draw = diffusion.sample(seen)[0]
    known = mask > 0
    assert draw.shape == (1, 1, 96, 80) and torch.allclose(draw[0, 0][known], noisy[0][known], atol=1e-3)
    assert ((draw >= 100) & (draw <= 300))[0, 0][~known].all()

    first = nn.Conv2d(2, 1, 1)
    nn.init.constant_(first.weight, 1.0)
    nn.init.zeros_(first.bias)
    ensemble = Ensemble([first], mean=MEAN, std=STD)
    dropout = MonteCarloDropout(nn.Sequential(first, nn.Dropout(1e-9)), mean=MEAN, std=STD)
    for sampler in (ensemble, dropout):
        sampler.conditions = 1
        assert torch.allclose(sampler.sample(seen)[0, 0, 0], noisy[0] + STD * mask, atol=1e-3)
    own = FunctionSampler(shrunk)
    own.conditions = 1
    check_sampler(own, torch.cat([seen, seen.flip(-1)]))
