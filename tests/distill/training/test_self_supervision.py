"""A student that learns from the light of its own images: when it does, and what it keeps."""

import copy
import json
import logging
import signal

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import nn

from distill import DirectDenoiser, UserError, load_denoiser, psnr, specimen, train
from distill.runs import tensors
from distill.training import engine
from distill.training.patches import Patches
from distill.training.self_supervision import Best, SplitRisk, camera_of
from losses import L1, L2, MeanVariance, Quantiles, Tukey
from samplers import (
    HDN,
    CorrelatedNoise,
    FunctionSampler,
    GaussianNoise,
    PhotonNoise,
    StabilizedSampler,
    posterior_mean,
)
from samplers.noise.line import noise_line
from samplers.noise.split import LightSplit
from students import StabilizedUNet, UNet

QUICK = dict(batch_size=2, micro_batch=2, patch_size=32, validate_every=99, val_fraction=0.0, device="cpu",
             refine_steps=1, steps=1)  # fmt: skip


@pytest.fixture(scope="module")
def made():
    return specimen(4, 64)


class Draws(FunctionSampler):
    """Frozen; notes how many draws each call asks for. The first call is the check before training."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        super().__init__(lambda noisy: noisy)

    def sample(self, noisy, n=1):
        self.asked.append(n)
        return super().sample(noisy, n)


def tiny_hdn(noise=None) -> HDN:
    return HDN(noise or GaussianNoise(10.0), levels=2, latents=2, filters=4, blocks=1, patch_size=32)


def share(out) -> float:
    return tensors.load(out / "checkpoint.safetensors")[1]["settings"]["self_supervised"]


def weights(module: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def stored_weights(stored: dict[str, torch.Tensor], role: str) -> torch.Tensor:
    denoiser = DirectDenoiser(StabilizedUNet(), L2())
    start = f"{role}."
    denoiser.load_state_dict({k.removeprefix(start): v for k, v in stored.items() if k.startswith(start)})
    return weights(denoiser)


def shipped(channels: int = 1) -> StabilizedUNet:
    student = StabilizedUNet(channels, channels)
    student.load_pretrained()
    return student


def prepared(noisy: torch.Tensor, student: StabilizedUNet | None = None) -> DirectDenoiser:
    """(N, C, H, W) -> a denoiser as `train` makes it, before its first step."""
    student = student or shipped(noisy.shape[1])
    mean, std = (f(dim=(0, 2, 3))[:, None, None] for f in (noisy.mean, noisy.std))
    student.prepare(noisy, mean, std, *noise_line(noisy))
    denoiser = DirectDenoiser(student, L2(), noisy.shape[1])
    denoiser.prepare(mean, std)
    return denoiser


def test_under_l2_no_draws_are_asked_for(made, tmp_path):
    sampler = Draws()
    train(made.noisy, sampler, StabilizedUNet(), L2(), tmp_path, **QUICK)
    assert share(tmp_path) == 1.0 and sampler.asked == [1]


def test_in_co_training_the_sampler_learns_and_draws_nothing(made, tmp_path):
    hdn, drawn = tiny_hdn(), []
    sample = hdn.sample
    hdn.sample = lambda x, n=1: drawn.append(n) or sample(x, n)
    before = weights(hdn)
    train(made.noisy, hdn, StabilizedUNet(), L2(), tmp_path, **QUICK)
    assert share(tmp_path) == 1.0 and drawn == [1] and not weights(hdn).equal(before)


@pytest.mark.parametrize("loss", [L1(), MeanVariance(), Quantiles((0.1, 0.5, 0.9))])
def test_other_losses_learn_from_draws(loss, made, tmp_path):
    sampler = Draws()
    train(made.noisy, sampler, StabilizedUNet(1, len(loss.outputs)), loss, tmp_path, **QUICK)
    assert share(tmp_path) == 0.0 and sampler.asked[1:] == [loss.min_draws] * 2


def test_other_students_learn_from_draws(made, tmp_path):
    sampler = Draws()
    train(made.noisy, sampler, UNet(depth=2, filters=4), L2(), tmp_path, **QUICK)
    assert share(tmp_path) == 0.0 and sampler.asked == [1, 1, 1]


@pytest.mark.parametrize("asked", [0.0, 0.5])
def test_a_share_that_is_asked_for_leaves_the_rest_to_draws(asked, made, tmp_path):
    sampler = Draws()
    train(made.noisy, sampler, StabilizedUNet(), L2(), tmp_path, self_supervised=asked, **QUICK)
    assert share(tmp_path) == asked and sampler.asked == [1, 1, 1]


@pytest.mark.parametrize(
    ("asked", "loss", "student", "message"),
    [
        (0.5, L1(), StabilizedUNet, "self_supervised: got 0.5 with the loss L1"),
        (1.5, L2(), StabilizedUNet, "self_supervised: got 1.5, must be a number at least 0 and at most 1"),
        (-0.1, L2(), StabilizedUNet, "at least 0 and at most 1"),
        (0.5, L2(), lambda: UNet(depth=2, filters=4), "the student StabilizedUNet"),
        (None, L2(), lambda: StabilizedUNet(width=8), "width 40, got 8"),
    ],
)
def test_what_cannot_be_is_one_line_and_nothing_is_written(asked, loss, student, message, made, tmp_path):
    with pytest.raises(UserError, match=message) as caught:
        train(made.noisy, Draws(), student(), loss, tmp_path / "run", self_supervised=asked, **QUICK)
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


def blurred() -> np.ndarray:
    return gaussian_filter(specimen(4, 64).noisy.astype(np.float32), (0, 0.7, 0.7))


@pytest.mark.parametrize("images", [lambda: specimen(4, 64, noise="lines").noisy, blurred])
def test_a_guess_of_correlated_noise_leaves_draws_alone(images, tmp_path, caplog):
    sampler = Draws()
    train(images(), sampler, StabilizedUNet(), L2(), tmp_path / "run", **QUICK)
    assert caplog.text.count("neighbouring pixels is correlated") == 1
    assert share(tmp_path / "run") == 0.0 and sampler.asked == [1, 1, 1]
    with pytest.raises(UserError, match="independent between pixels"):
        train(images(), Draws(), StabilizedUNet(), L2(), tmp_path / "other", self_supervised=1.0, **QUICK)


def test_correlated_noise_is_observed_in_draws_that_are_not_turned(tmp_path, monkeypatch):
    made, turned, seen = specimen(4, 64, noise="lines"), [], []
    noise = torch.from_numpy(made.noisy - made.clean)[:, None]
    known = CorrelatedNoise.from_noise(noise, torch.from_numpy(made.clean)[:, None])
    monkeypatch.setattr(Patches, "places", lambda *a, places=Patches.places: (
        turned.append(list(a[3]) if len(a) > 3 else None), places(*a))[1])  # fmt: skip
    monkeypatch.setattr(LightSplit, "observe", lambda self, draw, observe=LightSplit.observe: (
        seen.append(draw), observe(self, draw))[1])  # fmt: skip
    for name, model in {"known": known, "guessed": None}.items():
        seen.clear()
        run = train(made.noisy, StabilizedSampler(model), StabilizedUNet(), L2(), tmp_path / name,
                    **(QUICK | dict(steps=2)))  # fmt: skip
        assert share(tmp_path / name) == 0.0 and not run.sampler.trainable
        assert len(seen) >= 3 and all(draw.shape[1:] == (1, 32, 32) for draw in seen)
        assert turned[-1] in ([0, 2, 4, 6], [0, 6])  # mirrored at most


def test_losses_of_several_draws_see_the_images(tmp_path, monkeypatch):
    monkeypatch.setattr(LightSplit, "observe", lambda *_: pytest.fail("its draws would be of other images"))
    noisy = specimen(4, 64, noise="lines").noisy
    train(noisy, StabilizedSampler(), StabilizedUNet(), Tukey(), tmp_path, **QUICK)


def test_draws_of_other_samplers_are_not_observed_again(tmp_path, monkeypatch):
    monkeypatch.setattr(LightSplit, "observe", lambda *_: pytest.fail("the sampler may know other noise"))
    train(specimen(4, 64, noise="lines").noisy, Draws(), StabilizedUNet(), L2(), tmp_path, **QUICK)


def test_a_student_of_observed_draws_is_better_than_its_sampler(tmp_path):
    made = specimen(6, 96, noise="lines")
    noisy, clean = (torch.from_numpy(v).float()[:, None] for v in (made.noisy, made.clean))
    sampler = StabilizedSampler(CorrelatedNoise.from_noise(noisy - clean, clean))
    sampler.prepare(noisy, noisy.mean((0, 2, 3), keepdim=True)[0], noisy.std((0, 2, 3), keepdim=True)[0])
    sampler.load_pretrained()
    shipped = psnr(posterior_mean(sampler, noisy, 8), clean)
    run = train(made.noisy, sampler, StabilizedUNet(), L2(), tmp_path, steps=0, refine_steps=20, device="cpu")
    assert psnr(run.denoiser(noisy).detach(), clean) > shipped + 0.2
    assert psnr(posterior_mean(run.sampler, noisy, 8), clean) > shipped + 0.1  # it follows the student


@pytest.mark.parametrize(("known", "loss"), [("lines", L2()), ("lines", L1()), ("line", L2()), ("", L2())])
def test_a_sampler_follows_its_student_only_with_known_noise(known, loss, tmp_path):
    made = specimen(4, 64, noise="lines")
    noise = torch.from_numpy(made.noisy - made.clean)[:, None]
    fitted = CorrelatedNoise.from_noise(noise, torch.from_numpy(made.clean)[:, None])
    independent = PhotonNoise(made.gain, made.offset, 3.0)  # is not used, because the noise is correlated
    model = {"lines": fitted, "line": independent}.get(known)
    run = train(made.noisy, StabilizedSampler(model), StabilizedUNet(), loss, tmp_path,
                **(QUICK | dict(steps=0, refine_steps=3)))  # fmt: skip
    fresh = copy.deepcopy(run.sampler)
    fresh.load_pretrained()
    same = torch.equal(fresh.mean.network.stem[1].weight, run.sampler.mean.network.stem[1].weight)
    assert same == (known != "lines" or isinstance(loss, L1))


def test_shipped_weights_beside_a_guess_are_not_trained(tmp_path, monkeypatch):
    made, cameras = specimen(4, 64, noise="lines"), []
    monkeypatch.setattr(engine, "camera_of", lambda *a: (cameras.append(camera_of(*a)), cameras[-1])[1])
    for init in ("pretrained", "none"):
        sampler = StabilizedSampler()
        run = train(made.noisy, sampler, StabilizedUNet(), L2(), tmp_path / init, init=init,
                    **(QUICK | dict(steps=2)))  # fmt: skip
        assert run.sampler.trainable == (init == "none") == (cameras[-1] is None)


@pytest.mark.parametrize("size", [48, 96])
@pytest.mark.parametrize("noise", ["poisson-gaussian", "gaussian", "lines"])
def test_lines_alone_are_taken_for_correlated(noise, size):
    for seed in range(2):
        noisy = torch.from_numpy(specimen(2, size, noise=noise, seed=seed).noisy).float()[:, None]
        assert LightSplit.fit(noisy).correlated == (noise == "lines")


@pytest.mark.parametrize("init", ["pretrained", "none"])
def test_a_stopped_run_resumes_bit_for_bit_with_what_it_kept(init, made, tmp_path):
    def run(out, seed, stop_at=0):
        torch.manual_seed(seed)
        hdn, student, calls = tiny_hdn(), StabilizedUNet(), []
        step = hdn.training_step

        def interrupted(x):
            calls.append(1)
            if len(calls) == stop_at:
                signal.raise_signal(signal.SIGINT)
            return step(x)

        hdn.training_step = interrupted
        options = QUICK | dict(steps=5, refine_steps=2, val_fraction=0.3, validate_every=2)
        return train(made.noisy, hdn, student, L2(), out, init=init, **options)

    whole = run(tmp_path / "whole", seed=0)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", seed=0, stop_at=4)  # after a validation, with a kept best
    resumed = run(tmp_path / "parts", seed=1)  # other initial weights: those of the run count
    first, second = (
        tensors.load(tmp_path / each / "checkpoint.safetensors")[0] for each in ("whole", "parts")
    )
    assert first.keys() == second.keys() and all(v.equal(second[k]) for k, v in first.items())
    assert weights(whole.denoiser).equal(weights(resumed.denoiser))
    errors = [
        [json.loads(row).get("val_split_error") for row in (tmp_path / each / "metrics.jsonl").open()]
        for each in ("whole", "parts")
    ]
    assert errors[0] == errors[1] and len([e for e in errors[0] if e]) == 4
    if init == "none":  # a random start is beaten at once
        assert not weights(whole.denoiser).equal(stored_weights(first, "start"))
        assert weights(whole.denoiser).equal(stored_weights(first, "best"))


def test_the_start_is_kept_if_training_makes_it_worse(made, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    run = train(made.noisy, Draws(), StabilizedUNet(), L2(), tmp_path, student_lr=0.005,
                **(QUICK | dict(steps=4, val_fraction=0.3, validate_every=2)))  # fmt: skip
    assert weights(run.denoiser).equal(weights(shipped())) and "stays as it was" in caplog.text
    assert weights(load_denoiser(tmp_path)).equal(weights(shipped()))
    noisy = torch.from_numpy(made.noisy).float()[:, None]
    with torch.no_grad():
        assert psnr(run.denoiser(noisy), torch.from_numpy(made.clean)[:, None]) > 28


def test_channels_are_split_each_by_its_own_noise(made, tmp_path):
    images = np.stack([made.noisy, 3.0 * made.noisy], axis=1)  # (4, 2, 64, 64)
    run = train(images, Draws(), StabilizedUNet(2, 2), L2(), tmp_path, axes="TCYX",
                **(QUICK | dict(val_fraction=0.3)))  # fmt: skip
    assert share(tmp_path) == 1.0
    noisy = torch.from_numpy(images).float()
    denoised = run.denoiser(noisy)
    assert denoised.shape == noisy.shape
    torch.testing.assert_close(denoised.mean((0, 2, 3)), noisy.mean((0, 2, 3)), rtol=0.02, atol=0)
    for given in (None, PhotonNoise(made.gain, made.offset, 3.2)):  # one model does not fit both
        first, second = (each.gain for each in LightSplit.fit(noisy, given).models)
        assert second == pytest.approx(3 * first, rel=0.01)


def test_without_init_it_starts_from_its_own_weights(made, tmp_path):
    still = QUICK | dict(student_lr=0.0)
    for width in (40, 8):
        student = StabilizedUNet(width=width)
        before = weights(student)
        run = train(made.noisy, Draws(), student, L2(), tmp_path / str(width), init="none", **still)
        assert weights(run.denoiser).equal(before) and share(tmp_path / str(width)) == 1.0
    run = train(made.noisy, Draws(), StabilizedUNet(), L2(), tmp_path / "pretrained", **still)
    assert weights(run.denoiser).equal(weights(shipped()))


@pytest.mark.parametrize("channels", [1, 2])
def test_a_run_gives_its_weights_and_not_its_noise(channels, made, tmp_path):
    old = train(made.noisy, Draws(), StabilizedUNet(), L2(), tmp_path / "old", student_lr=1e-3, ema=0.0,
                **QUICK)  # fmt: skip
    assert not weights(old.denoiser).equal(weights(shipped()))
    images = np.stack([3.0 * made.noisy + 500] * channels, axis=1)
    new = StabilizedUNet(channels, channels)  # each is denoised by itself, so their number may change
    run = train(images, Draws(), new, L2(), tmp_path / "new", init=tmp_path / "old", axes="TCYX",
                student_lr=0.0, **QUICK)  # fmt: skip
    assert weights(run.denoiser).equal(weights(old.denoiser)) and share(tmp_path / "new") == 1.0
    assert new.gain[-1].item() == pytest.approx(3 * old.denoiser.backbone.gain.item(), rel=0.01)
    assert run.denoiser.mean[-1].item() == pytest.approx(3 * old.denoiser.mean.item() + 500, rel=1e-4)


class Answers(nn.Module):
    """Stands for a denoiser: an answer of its own, or what it is given."""

    def __init__(self, answer: torch.Tensor | None = None) -> None:
        super().__init__()
        self.answer = answer

    def image(self, noisy, share=1.0):
        return noisy if self.answer is None else self.answer


@pytest.mark.parametrize("noise", [GaussianNoise(10.0), PhotonNoise(2.0, -190.0, 3.2)])
def test_the_risk_is_least_for_the_clean_image(noise):
    clean = torch.linspace(105, 250, 64).expand(2, 1, 64, 64)
    noisy = noise.sample(clean)
    risks = [float(SplitRisk(Answers(each), LightSplit([noise]))(noisy)) for each in (clean, clean + 5, None)]
    assert risks[0] == pytest.approx(1, abs=0.06) and risks[0] < risks[1] < risks[2]


def test_held_out_errors_are_of_the_same_splits_and_leave_the_generator_alone():
    noise, clean = GaussianNoise(10.0), torch.full((6, 1, 32, 32), 100.0)
    noisy = noise.sample(clean)
    risk, state = SplitRisk(Answers(), LightSplit([noise])), torch.get_rng_state()
    first, again = (risk.held_out(Answers(clean), noisy, seed=3) for _ in range(2))
    assert first.shape == (6,) and first.equal(again) and torch.get_rng_state().equal(state)
    torch.testing.assert_close(first.mean(), torch.tensor(1 / 0.2), rtol=0.05, atol=0)  # light of one fifth


def test_best_is_the_start_unless_it_is_clearly_beaten(made):
    noisy = torch.from_numpy(made.noisy).float()[:, None]
    good, random = prepared(noisy), prepared(noisy, StabilizedUNet())
    risk = SplitRisk(good, LightSplit.fit(noisy))
    from_random = Best(random, risk, noisy, seed=0)
    assert from_random.compare(random) > from_random.compare(good)
    from_random.compare(random)  # later and worse
    assert weights(from_random.final()).equal(weights(good))
    from_good = Best(good, risk, noisy, seed=0)
    from_good.compare(random)
    assert weights(from_good.final()).equal(weights(good))


@pytest.mark.slow
def test_training_does_no_harm_to_images_that_it_has_not_seen(tmp_path):
    made = specimen(24, 128)
    run = train(made.noisy[:20], Draws(), StabilizedUNet(), L2(), tmp_path, device="cpu", steps=60,
                refine_steps=0, batch_size=4, patch_size=64, validate_every=20)  # fmt: skip
    noisy, clean = (torch.from_numpy(v[20:]).float()[:, None] for v in (made.noisy, made.clean))
    start = prepared(torch.from_numpy(made.noisy[:20]).float()[:, None]).eval()
    with torch.no_grad():
        before, after = psnr(start(noisy), clean), psnr(run.denoiser(noisy), clean)
    assert after > before - 0.02
