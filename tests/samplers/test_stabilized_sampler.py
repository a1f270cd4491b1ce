"""The sampler of a mean and a spread, and the splitting that it learns from."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from distill import predict, psnr, specimen, train
from distill.runs.checkpoint import load_sampler, save_sampler
from distill.training.steps import Teach
from losses import L1
from samplers import (
    CorrelatedNoise,
    GaussianMixtureNoise,
    GaussianNoise,
    PhotonNoise,
    StabilizedSampler,
    posterior_mean,
)
from samplers.noise.split import LightSplit
from samplers.stabilized import SCALES
from samplers.testing import check_sampler
from students import UNet
from students.noise_conditioned import smooth_noise

TINY = dict(width=8, spread_width=8)


def frames(**options) -> torch.Tensor:
    return torch.from_numpy(specimen(3, 96, **options).noisy).float()[:, None]


def prepared(sampler: StabilizedSampler, noisy: torch.Tensor) -> StabilizedSampler:
    axes = (0, 2, 3)
    sampler.prepare(noisy, noisy.mean(axes)[:, None, None], noisy.std(axes)[:, None, None])
    return sampler


@pytest.mark.parametrize(
    "noise",
    [
        None,
        GaussianNoise(10.0),
        GaussianNoise(gain=1.0),
        PhotonNoise(1.0, 4.0, 2.0),
        CorrelatedNoise([[0.5, 1, 0.5]], gain=1.0),
    ],
)
def test_it_keeps_the_rules(noise):
    check_sampler(StabilizedSampler(noise, **TINY))


def test_it_keeps_the_rules_with_channels():
    check_sampler(StabilizedSampler(channels=2, **TINY))


def test_a_noise_model_that_cannot_be_split_is_refused():
    noise = GaussianMixtureNoise.fit(100 + torch.rand(5000), 100 + torch.rand(5000), steps=2)
    with pytest.raises(ValueError, match=r"got a GaussianMixtureNoise.*use the sampler HDN"):
        StabilizedSampler(noise)


@pytest.mark.parametrize("noise", ["lines", "blur"])
def test_correlated_noise_is_estimated_and_told(noise, caplog):
    if noise == "lines":
        made = specimen(3, 128, noise="lines")
        noisy = torch.from_numpy(made.noisy).float()[:, None]
        wanted = made.noisy - made.clean
    else:
        made = specimen(3, 128)
        noisy = torch.from_numpy(gaussian_filter(made.noisy.astype("f4"), (0, 0.7, 0.7)))[:, None]
        wanted = gaussian_filter(made.noisy - made.clean, (0, 0.7, 0.7))
    sampler = prepared(StabilizedSampler(**TINY), noisy)
    assert "neighbouring pixels is correlated" in caplog.text
    assert not (noise == "lines" and sampler.isotropic) and (sampler.isotropic or "yx" in sampler.mirrors)
    (found,) = sampler.light.models
    for got, axis in zip(found.neighbours, (1, 2), strict=True):
        pairs = [np.take(wanted, range(start, 127 + start), axis) for start in (0, 1)]
        assert got == pytest.approx((pairs[0] * pairs[1]).mean() / wanted.var(), abs=0.15)
    assert found.variance(noisy.mean()).item() == pytest.approx(wanted.var(), rel=0.25)


def test_correlated_noise_starts_from_weights_of_its_own():
    made = specimen(2, 128, noise="lines")
    noisy, clean = (torch.from_numpy(v).float()[:, None] for v in (made.noisy, made.clean))
    scores = {}
    for correlated in (True, False):
        sampler = prepared(StabilizedSampler(), noisy)
        sampler.mean.correlated &= correlated
        sampler.load_pretrained()
        scores[correlated] = psnr(posterior_mean(sampler, noisy, 8), clean)
    assert scores[True] > scores[False] + 0.5


def test_hot_pixels_are_not_taken_for_lines_and_hardly_weigh():
    for seed in range(4):
        noisy = frames(seed=seed)
        hot = torch.where(torch.rand(noisy.shape[1:]) < 3e-4, 65535.0, noisy)
        sampler = prepared(StabilizedSampler(**TINY), hot)
        assert sampler.training_step(hot)[0].item() < 30 * sampler.training_step(noisy)[0].item()


@pytest.mark.parametrize("noise", ["poisson-gaussian", "gaussian"])
def test_before_training_draws_disagree_as_a_posterior_s_would(noise):
    made = specimen(3, 96, noise=noise)
    noisy, clean = (torch.from_numpy(v)[:, None].float() for v in (made.noisy, made.clean))
    sampler = prepared(StabilizedSampler(), noisy)
    sampler.load_pretrained()
    draws = sampler.sample(noisy, 16)
    one, many = (float((v - clean).square().mean()) for v in (draws, draws.mean(0)))
    assert 1.7 < one / (many - one / 16) * 15 / 16 < 2.3
    assert psnr(draws.mean(0), clean) > psnr(noisy, clean) + 4


def test_training_teaches_both_networks_and_the_run_draws_again(tmp_path):
    made, sampler = specimen(3, 64), StabilizedSampler(**TINY)
    before = {name: p.detach().clone() for name, p in sampler.named_parameters() if "told" not in name}
    run = train(made.noisy, sampler, UNet(depth=2, filters=4), L1(), tmp_path, steps=3, refine_steps=1,
                batch_size=2, patch_size=32, init="none", device="cpu")  # fmt: skip
    after = dict(run.sampler.named_parameters())
    assert not any(after[name].equal(p) for name, p in before.items())  # it is told of correlated noise only
    loaded, noisy = load_sampler(tmp_path), torch.from_numpy(made.noisy)[:1, None].float()
    drawn = []
    for each in (run.sampler, loaded):
        torch.manual_seed(1)
        drawn.append(posterior_mean(each, noisy, 3))
    assert drawn[0].equal(drawn[1])
    assert predict(run, made.noisy, draws=2).shape == made.noisy.shape


def test_its_shipped_weights_are_the_default_start(tmp_path):
    made = specimen(3, 64)
    started = StabilizedSampler()
    started.load_pretrained()
    run = train(made.noisy, StabilizedSampler(), UNet(depth=2, filters=4), L1(), tmp_path, steps=1,
                batch_size=1, refine_steps=0, patch_size=32, lr=1e-9, device="cpu")  # fmt: skip
    for got, wanted in zip(run.sampler.parameters(), started.parameters(), strict=True):
        assert torch.allclose(got, wanted, atol=1e-6)
    with pytest.raises(ValueError, match="spread_width is 32, got 8; pass init none"):
        StabilizedSampler(spread_width=8).load_pretrained()


def test_parts_of_the_light_are_independent_and_sum_to_the_whole():
    signal = torch.linspace(100, 130, 64).expand(400, 1, 64, 64)
    for model in (GaussianNoise(10.0), PhotonNoise(2.0, 0.0, 1.0, shape=3.0)):
        light = LightSplit([model])
        seen = model.sample(signal)
        first, second = light(seen, 0.7)
        assert torch.allclose(0.7 * first + 0.3 * second, seen, atol=1e-3)
        a, b, again = first - signal, second - signal, light(light.observe(signal), 0.7)[0] - signal
        scale = light.variance(signal).mean()
        assert abs(float((a * b).mean() / scale)) < 0.02
        for part in (a, again):
            assert abs(float(part.square().mean() / scale) - 1 / 0.7) < 0.02


def test_bf16_changes_no_split():
    noisy = frames() + 10_000
    light = prepared(StabilizedSampler(**TINY), noisy).light
    parts = []
    for bf16 in (False, True):
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            parts.append([*light(noisy, 0.7), light.error(noisy, light(noisy, 0.7)[0], noisy, 0.7)])
    assert all(a.equal(b) for a, b in zip(*parts, strict=True))


def test_random_numbers_have_variance_1_and_no_grid():
    like = torch.zeros(64, 1, 64, 64)
    for scale in set(SCALES):
        noise = smooth_noise(like, scale)
        assert noise.shape == like.shape and abs(float(noise.var()) - 1) < 0.1
        columns = noise.square().mean((0, 1, 2))
        assert float(columns.std() / columns.mean()) < 0.2


def test_a_random_share_of_the_light_compiles_nothing_anew():
    from torch._dynamo.testing import CompileCounter

    light, counter, noisy = LightSplit([GaussianNoise(5.0)]), CompileCounter(), torch.rand(1, 1, 16, 16)

    def error() -> torch.Tensor:
        share = light.random_share()
        return (noisy * share - light(noisy, share)[1]).square().mean()

    compiled, counts = torch.compile(error, backend=counter), []
    for _ in range(6):
        compiled()
        counts.append(counter.frame_count)
    assert 0 < counts[-1] == counts[2]


def test_a_loaded_sampler_knows_that_its_noise_is_correlated(tmp_path):
    noise = CorrelatedNoise([[0.5, 1, 0.5]], gain=1.0)
    sampler = prepared(StabilizedSampler(noise, **TINY), frames())
    sampler.shipped.fill_(True)
    save_sampler(tmp_path / "sampler.safetensors", sampler)
    for each in (sampler, load_sampler(tmp_path)):
        assert not each.isotropic and not each.trainable and "yx" in each.mirrors


def test_its_loss_needs_no_draw(monkeypatch):
    sampler = prepared(StabilizedSampler(GaussianNoise(10.0), **TINY), frames()).train()
    monkeypatch.setattr(StabilizedSampler, "draws", None)
    draws, loss = Teach(sampler, draws=0)(frames()[..., :32, :32])
    assert draws is None and loss is not None and loss.isfinite()


@pytest.mark.parametrize("noise", [GaussianNoise(10.0), CorrelatedNoise([[0.5, 1, 0.5]], gain=1.0)])
def test_patches_may_be_tiny(noise):
    light = LightSplit.fit(frames(), noise)
    tiny = frames()[..., :2, :2]
    first, second = light(tiny, 0.5)
    assert light.error(first, second, tiny, 0.5).isfinite()


def test_hot_and_dead_pixels_leave_no_trace(caplog):
    noisy, places = frames(), (slice(None), 0, [20, 80, 70], [30, 40, 60])
    answers = []
    for value in (None, 4000.0, 0.0):
        broken = noisy.clone()
        if value is not None:
            broken[places] = value
        sampler = prepared(StabilizedSampler(), broken)
        sampler.load_pretrained()
        torch.manual_seed(0)
        answers.append((sampler.mean.denoise(broken), sampler.sample(broken)[0]))
    assert caplog.text.count("3 hot or dead pixels") == 2
    std = sampler.light.variance(answers[0][0]).sqrt()
    for mean, draw in answers[1:]:
        assert ((mean - answers[0][0]) / std).abs().max() < 3
        assert ((draw - answers[0][1]) / std).abs().max() < 3
