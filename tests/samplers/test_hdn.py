import math

import pytest
import torch

from samplers import HDN, GaussianNoise, posterior_mean, posterior_median, posterior_std
from samplers.hdn import LIGHT
from samplers.ladder_vae import LadderVAE, gaussian_kl, moments

SMALL = dict(levels=2, latents=2, filters=4, blocks=1, patch_size=16)


def small_hdn(**more) -> HDN:
    torch.manual_seed(0)
    return HDN(GaussianNoise(5.0), **(SMALL | more)).eval()


def test_parameter_counts_are_the_published_ones():
    count = lambda m: sum(p.numel() for p in m.parameters())
    assert count(HDN(GaussianNoise(1.0))) == 7_301_697
    assert count(HDN(GaussianNoise(1.0), patch_size=128)) == 7_301_889


def test_latents_and_padding_are_the_published_ones():
    vae = LadderVAE(filters=4, latents=2, blocks=1).eval()
    with torch.no_grad():
        assert [b.shape[-1] for b in vae.encode(torch.zeros(1, 1, 64, 64))] == [32, 16, 8, 4, 2, 1]
        assert vae.encode(torch.zeros(1, 1, 100, 130))[0].shape[-2:] == (64, 96)  # of 128 x 192


def test_kl_of_equal_gaussians_is_zero_and_of_others_is_torchs():
    torch.manual_seed(0)
    mean, logvar, prior_mean, prior_logvar = torch.randn(4, 3, 2, 4, 4)
    assert gaussian_kl(mean, logvar, mean, logvar).abs().max() < 1e-5
    expected = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, (logvar / 2).exp()),
        torch.distributions.Normal(prior_mean, (prior_logvar / 2).exp()),
    ).sum(dim=(1, 2, 3))
    torch.testing.assert_close(gaussian_kl(mean, logvar, prior_mean, prior_logvar), expected)


def test_free_bits_hold_each_level_of_each_image():
    hdn = HDN(GaussianNoise(1.0), filters=4, latents=2, blocks=1)
    assert hdn.kl_cost(torch.zeros(3, 6)) == 6  # 6 / 4096 per pixel of a 64 x 64 patch
    assert hdn.kl_cost(torch.tensor([[0.0, 5.0], [3.0, 1.0]])) == (1 + 3) / 2 + (5 + 1) / 2


def test_training_step_is_the_negative_elbo_in_raw_counts():
    hdn = small_hdn(free_bits=0.0)
    noisy = 100 + 20 * torch.randn(3, 1, 16, 16)
    hdn.prepare(noisy, torch.full((1, 1, 1), 100.0), torch.full((1, 1, 1), 20.0))
    torch.manual_seed(1)
    loss, draw = hdn.training_step(noisy)
    torch.manual_seed(1)
    _, kl = hdn.vae.decode(hdn.vae.encode((noisy - 100) / 20), 16, 16)
    nll = 0.5 * ((noisy - draw) / 5).square() + math.log(5 * math.sqrt(2 * math.pi))
    torch.testing.assert_close(loss, nll.mean() + kl.sum() / 3 / 256)
    assert draw.requires_grad and draw.shape == noisy.shape


@pytest.mark.parametrize("size", [(1, 1), (7, 33), (40, 16)])
def test_draws_any_size_without_gradient_and_keeps_the_mode(size):
    hdn = small_hdn().train()
    noisy = torch.rand(2, 1, *size)
    draws = hdn.sample(noisy, 5)
    assert draws.shape == (5, 2, 1, *size) and not draws.requires_grad
    assert hdn.training and torch.is_grad_enabled()
    assert (draws[0] != draws[1]).any()


def test_draws_encode_once_and_decode_in_bounded_batches(monkeypatch):
    hdn, decoded, encoded = small_hdn(), [], []
    decode, encode = hdn.vae.decode, hdn.vae.encode
    monkeypatch.setattr("samplers.vae.DRAW_PIXELS", 3 * 2 * 256)
    monkeypatch.setattr(hdn.vae, "decode", lambda b, *s: decoded.append(len(b[0])) or decode(b, *s))
    monkeypatch.setattr(hdn.vae, "encode", lambda x: encoded.append(1) or encode(x))
    assert len(list(hdn.draws(torch.rand(2, 1, 16, 16), 8))) == 8
    assert encoded == [1] and decoded == [6, 6, 4]


def test_abandoned_draws_leave_gradients_on():
    draws = small_hdn().draws(torch.rand(1, 1, 16, 16), 3)
    next(draws)
    assert torch.is_grad_enabled()


def test_consensus_images_are_those_of_the_draws():
    hdn, noisy = small_hdn(), torch.rand(1, 1, 16, 16)
    for statistic, expected in [
        (posterior_mean, lambda d: d.mean(0)),
        (posterior_median, lambda d: d.quantile(0.5, dim=0)),
        (posterior_std, lambda d: d.std(0)),
    ]:
        torch.manual_seed(3)
        got = statistic(hdn, noisy, 6)
        torch.manual_seed(3)
        torch.testing.assert_close(got, expected(hdn.sample(noisy, 6)))


def test_noise_is_estimated_from_the_images_unless_given():
    torch.manual_seed(0)
    flat = torch.linspace(50, 200, 128).expand(2, 1, 128, 128)
    noisy = flat + 10 * torch.randn_like(flat)
    hdn = HDN(**SMALL)
    hdn.prepare(noisy, noisy.mean().view(1, 1, 1), noisy.std().view(1, 1, 1))
    assert hdn.noise_model.variance(torch.tensor(100.0)) == pytest.approx(100, rel=0.15)


def test_deactivated_levels_get_no_information_from_the_image():
    hdn = small_hdn(active_levels=[2])
    hdn.vae.top_down[0].merge.register_forward_hook(lambda *_: pytest.fail("level 1 was merged"))
    hdn.sample(torch.rand(1, 1, 16, 16))
    with pytest.raises(ValueError, match="active_levels"):
        small_hdn(active_levels=[0])


def test_wrong_channels_are_one_clear_line():
    with pytest.raises(ValueError, match="channels=3"):
        small_hdn().prepare(torch.rand(1, 3, 16, 16), torch.zeros(3, 1, 1), torch.ones(3, 1, 1))


@pytest.mark.slow
def test_two_flat_images_are_learnt_almost_to_the_entropy_of_the_noise():
    hdn = small_hdn(free_bits=0.0, filters=8, dropout=0.0).train()
    levels = torch.tensor([50.0, 150.0]).repeat(8)[:, None, None, None].expand(16, 1, 16, 16)
    hdn.prepare(levels, torch.full((1, 1, 1), 100.0), torch.full((1, 1, 1), 50.0))
    optimizer = torch.optim.AdamW(hdn.parameters(), 5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 200)
    for _ in range(200):
        loss, _ = hdn.training_step(levels + 5 * torch.randn(levels.shape))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    entropy = math.log(5 * math.sqrt(2 * math.pi * math.e)) + math.log(2) / 256  # nats per pixel
    assert entropy - 0.05 < loss.item() < entropy + 0.2
    denoised = posterior_mean(hdn, levels + 5 * torch.randn(levels.shape), 10)
    assert (denoised - levels).square().mean().sqrt() < 2.5  # half the noise


def test_half_resolution_computes_nothing_at_full_size_and_widens_with_depth():
    hdn = small_hdn(levels=3, filters=8, unshuffle=2, growth=1.5)
    vae = hdn.vae
    assert vae.multiple == 16
    with torch.no_grad():
        features = vae.encode(torch.zeros(1, 1, 32, 64))
    assert [tuple(f.shape[1:]) for f in features] == [(16, 8, 16), (16, 4, 8), (24, 2, 4)]
    noisy = 50 + 10 * torch.randn(2, 1, 37, 50)
    assert hdn.sample(noisy, 3).shape == (3, 2, 1, 37, 50)
    hdn.train()
    loss, draw = hdn.training_step(noisy)
    assert loss.isfinite() and draw.shape == noisy.shape
    with pytest.raises(ValueError, match="unshuffle"):
        small_hdn(unshuffle=0)


def test_light_is_a_fraction_of_the_published_network():
    count = lambda m: sum(p.numel() for p in m.parameters())
    assert count(HDN(**LIGHT)) < 0.6 * count(HDN())


def test_log_variances_that_would_overflow_stay_finite_and_others_are_as_they_are():
    features = torch.tensor([0.0, 200.0]).reshape(1, 2, 1, 1)
    mean, logvar = moments(features)
    assert logvar.exp().isfinite().all()
    assert moments(torch.tensor([1.0, -5.5]).reshape(1, 2, 1, 1))[1].item() == -5.5
    assert gaussian_kl(mean, logvar, mean, -logvar).isfinite().all()
