import inspect
import json
import math

import pytest
import torch

from samplers import AutoregressiveNoise, JointNoiseVAE, StructuredNoiseVAE, posterior_mean
from samplers.base import PosteriorSampler

SMALL = {"levels": 2, "latents": 2, "filters": 4, "blocks": 1, "patch_size": 16}
NOISE = {"context": "row", "filters": 4, "dilations": (1,), "components": 2}


def structured(**more) -> StructuredNoiseVAE:
    torch.manual_seed(0)
    return StructuredNoiseVAE(AutoregressiveNoise(**NOISE), **(SMALL | more)).eval()


def joint(**more) -> JointNoiseVAE:
    torch.manual_seed(0)
    return JointNoiseVAE(**(SMALL | {"code": 8, "dilations": (1,)} | more)).eval()


def prepared(sampler: PosteriorSampler, channels: int = 1) -> PosteriorSampler:
    mean, std = torch.full((channels, 1, 1), 100.0), torch.full((channels, 1, 1), 20.0)
    sampler.prepare(100 + 20 * torch.randn(2, channels, 16, 16), mean, std)
    return sampler


def signal_and_noise(count: int, size: int = 32, rho: float = 0.9) -> tuple[torch.Tensor, torch.Tensor]:
    """Smooth blobs around 100 counts, and as strong noise that is correlated along the rows."""
    coarse = torch.randn(count, 1, size // 8, size // 8)
    signal = torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic")
    white = torch.randn(count, 1, size, size + 40)
    kernel = rho ** torch.arange(39, -1, -1.0)
    noise = torch.nn.functional.conv2d(white, kernel.view(1, 1, 1, -1))[..., :size]
    return 100 + 20 * signal / signal.std(), 20 * noise / noise.std()


@pytest.mark.parametrize("make", [structured, joint])
@pytest.mark.parametrize("size", [(1, 1), (7, 33), (40, 16)])
def test_draws_any_size_in_raw_counts_without_gradient_and_keeps_the_mode(make, size):
    sampler = prepared(make()).train()
    noisy = 100 + 20 * torch.randn(2, 1, *size)
    draws = sampler.sample(noisy, 5)
    assert draws.shape == (5, 2, 1, *size) and not draws.requires_grad
    assert sampler.training and torch.is_grad_enabled()
    assert (draws[0] != draws[1]).any() and 0 < draws.mean() < 200
    loss, draw = sampler.training_step(noisy)
    assert loss.isfinite() and loss.ndim == 0 and draw.shape == noisy.shape


@pytest.mark.parametrize("make", [structured, joint])
def test_draws_encode_once(make, monkeypatch):
    sampler, encoded = prepared(make()), []
    encode = sampler.vae.encode
    monkeypatch.setattr(sampler.vae, "encode", lambda x: encoded.append(1) or encode(x))
    assert len(list(sampler.draws(torch.rand(2, 1, 16, 16), 8))) == 8 and encoded == [1]


@pytest.mark.parametrize("make", [structured, joint])
def test_rebuilds_from_its_arguments_and_weights(make):
    def arguments(module):
        names = inspect.signature(type(module)).parameters
        return {k: getattr(module, k) for k in names if k != "noise_model"}

    sampler = prepared(make())
    given = json.loads(json.dumps(arguments(sampler)))
    if make is structured:
        noise = json.loads(json.dumps(arguments(sampler.noise_model)))
        given["noise_model"] = AutoregressiveNoise(**noise)
    again = type(sampler)(**given).eval()
    again.load_state_dict(sampler.state_dict())
    noisy = torch.rand(1, 1, 16, 16)
    torch.manual_seed(1)
    expected = sampler.sample(noisy)
    torch.manual_seed(1)
    assert torch.equal(again.sample(noisy), expected)


def test_structured_step_is_the_negative_elbo_and_leaves_the_noise_model_alone():
    sampler = prepared(structured()).train()
    noisy = 100 + 20 * torch.randn(3, 1, 16, 16)
    torch.manual_seed(1)
    loss, draw = sampler.training_step(noisy)
    sampler.eval().train()
    torch.manual_seed(1)
    _, kl = sampler.vae.decode(sampler.vae.encode((noisy - 100) / 20), 16, 16)
    expected = kl.sum() / 3 / 256 - sampler.noise_model.log_likelihood(noisy, draw).mean()
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert sampler.trainable and all(p.grad is None for p in sampler.noise_model.parameters())
    assert all(p.grad is not None for p in sampler.vae.parameters())


@pytest.mark.parametrize("channels", [1, 2])
def test_joint_step_is_the_elbo_in_raw_counts_and_a_detached_mse(channels):
    sampler = prepared(joint(channels=channels), channels)
    noisy = 100 + 20 * torch.randn(3, channels, 16, 16)
    x = (noisy - 100) / 20
    torch.manual_seed(1)
    loss, draw = sampler.training_step(noisy)
    torch.manual_seed(1)
    code, kl = sampler.vae.code(sampler.vae.encode(x), 16, 16)
    density = sampler.log_density(x, code)
    assert code.shape == (3, channels * 8, 16, 16) and density.shape == (3 * channels, 16, 16)
    cost = kl.clamp(min=1).sum() / 3
    elbo = density.mean() - math.log(20) - cost / (channels * 256)
    mse = ((draw - noisy) / 20).square().mean()
    torch.testing.assert_close(loss, mse - elbo)
    (grad,) = torch.autograd.grad(draw.sum(), sampler.vae.head.weight, allow_unused=True)
    assert grad is None  # the code has to explain the image, not only its mean
    loss, _ = sampler.training_step(noisy)
    loss.backward()
    assert all(p.grad is not None for p in sampler.parameters())


@pytest.mark.parametrize("direction", ["x", "y"])
def test_noise_decoder_sees_its_line_and_the_code_of_its_pixel_only(direction):
    sampler = JointNoiseVAE(direction, **SMALL, code=8)
    assert sampler.noise_model.reach == 40  # as published
    turn = (lambda t: t) if direction == "x" else (lambda t: t.mT)
    x, code = torch.randn(1, 1, 3, 60), torch.randn(1, 8, 3, 60)
    x, code = turn(x).clone().requires_grad_(), turn(code).clone().requires_grad_()
    value = sampler.log_density(x, code)[0, 1, 50]
    by_x, by_code = (turn(g)[0] for g in torch.autograd.grad(value, (x, code)))
    for slope, first in ((by_x[0], 10), (by_code[0], 14)):
        assert not slope[[0, 2]].any() and not slope[:, 51:].any() and not slope[:, :first].any()
        assert slope[1, first] != 0 and slope[1, 50] != 0


def test_joint_density_of_a_pixel_integrates_to_one():
    sampler = joint()
    x, code = torch.randn(1, 1, 2, 6).repeat(4001, 1, 1, 1), torch.randn(1, 8, 2, 6)
    x[:, 0, 1, 4] = torch.linspace(-20, 20, 4001)
    density = sampler.log_density(x, code.expand(4001, -1, -1, -1))[:, 1, 4].detach().double().exp()
    assert density.sum() * 0.01 == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("make", [structured, joint])
def test_training_lowers_the_loss(make):
    sampler = prepared(make(filters=8)).train()
    signal, noise = signal_and_noise(8, 16)
    optimizer = torch.optim.AdamW([p for p in sampler.parameters() if p.requires_grad], 5e-3)
    losses = []
    for _ in range(40):
        loss, _ = sampler.training_step(signal + noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-5:]) / 5 < sum(losses[:5]) / 5 - 0.1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: StructuredNoiseVAE(None), "AutoregressiveNoise.fit"),
        (lambda: JointNoiseVAE("rows"), "allowed are x, y"),
        (lambda: prepared(joint(), channels=3), "channels=3"),
    ],
)
def test_bad_arguments_are_one_clear_line(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.slow
def test_joint_tells_line_noise_from_signal_without_any_calibration():
    torch.manual_seed(1)
    signal, noise = signal_and_noise(256, rho=0.8)
    noisy = signal + noise
    sampler = JointNoiseVAE(levels=2, latents=4, filters=8, blocks=1, patch_size=32, code=8, dilations=(1, 2))
    sampler.prepare(noisy, noisy.mean().view(1, 1, 1), noisy.std().view(1, 1, 1))
    optimizer = torch.optim.AdamW(sampler.parameters(), 1e-2, betas=(0.9, 0.99))
    sampler.train()
    for step in range(150):
        optimizer.param_groups[0]["lr"] = 5e-3 * (1 + math.cos(math.pi * step / 150))
        loss, _ = sampler.training_step(noisy[torch.randint(256, (8,))])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(sampler.parameters(), 5.0)
        optimizer.step()
    signal, noise = signal_and_noise(16, rho=0.8)
    denoised = posterior_mean(sampler, signal + noise, 20)
    assert (denoised - signal).square().mean().sqrt() < 12  # 20 of the noisy images


def test_joint_learns_from_integers_as_from_what_they_were_rounded_from(monkeypatch):
    counts, seen = torch.poisson(torch.full((2, 1, 32, 32), 2.0)), []
    mean, std = counts.mean().view(1, 1, 1), counts.std().view(1, 1, 1)
    for images, whole in ((counts, True), (counts + 0.1 * torch.randn(2, 1, 32, 32), False)):
        sampler = joint()
        sampler.prepare(images, mean, std)
        monkeypatch.setattr(sampler, "log_density", lambda x, code, own=sampler.log_density: (
            seen.append(x * std + mean), own(x, code))[1])  # fmt: skip
        sampler.training_step(images)
        if whole:
            added = seen[-1] - images
            assert added.abs().max() < 0.51 and added.std() == pytest.approx(12**-0.5, rel=0.05)
        else:
            torch.testing.assert_close(seen[-1], images)
