import math

import pytest
import torch

from samplers import DivNoising, GaussianNoise, LinearGaussianField, posterior_mean

MEAN, STD = torch.full((1, 1, 1), 100.0), torch.full((1, 1, 1), 20.0)


def small(**more) -> DivNoising:
    return DivNoising(GaussianNoise(5.0), **({"filters": 4, "latents": 3} | more))


def test_the_network_is_the_published_one():
    vae = DivNoising(GaussianNoise(1.0)).vae
    assert sum(p.numel() for p in vae.parameters()) == 261_281
    mean, logvar = vae.encode(torch.zeros(1, 1, 64, 48))
    assert mean.shape == logvar.shape == (1, 64, 16, 12)


def test_training_step_is_the_negative_elbo_in_raw_counts():
    sampler, noisy = small().eval(), 100 + 20 * torch.randn(3, 1, 16, 16)
    sampler.prepare(noisy, MEAN, STD)
    torch.manual_seed(1)
    loss, draw = sampler.training_step(noisy)
    mean, logvar = sampler.vae.encode((noisy - 100) / 20)
    torch.manual_seed(1)
    torch.testing.assert_close(draw, sampler.sample(noisy)[0])
    kl = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, (logvar / 2).exp()), torch.distributions.Normal(0, 1)
    )
    nll = 0.5 * ((noisy - draw) / 5).square() + math.log(5 * math.sqrt(2 * math.pi))
    torch.testing.assert_close(loss, nll.mean() + kl.sum() / noisy.numel())


def test_the_kl_warms_up_with_the_training_steps_and_goes_on_after_loading():
    sampler, kl = small(kl_warmup=4).train(), torch.tensor(4.0)
    assert [sampler.warmed_up(kl).item() for _ in range(2)] == [1, 2]
    assert sampler.eval().warmed_up(kl) == 4
    resumed = small(kl_warmup=4).train()
    resumed.load_state_dict(sampler.state_dict())
    assert [resumed.warmed_up(kl).item() for _ in range(3)] == [3, 4, 4]
    assert small(kl_warmup=0).train().warmed_up(kl) == 4
    in_parts = small(kl_warmup=4).train()
    in_parts.passes_per_step = 2  # as `train` does, for micro-batches
    assert [float(in_parts.warmed_up(kl)) for _ in range(4)] == [0.5, 1.0, 1.5, 2.0]


def test_draws_encode_once_and_decode_in_bounded_batches(monkeypatch):
    sampler, encoded, decoded = small(), [], []
    encode, decode = sampler.vae.encode, sampler.vae.decode
    monkeypatch.setattr("samplers.vae.DRAW_PIXELS", 3 * 2 * 256)
    monkeypatch.setattr(sampler.vae, "encode", lambda x: encoded.append(1) or encode(x))
    monkeypatch.setattr(sampler.vae, "decode", lambda z, *s: decoded.append(len(z[0])) or decode(z, *s))
    assert len(list(sampler.draws(torch.rand(2, 1, 16, 16), 8))) == 8
    assert encoded == [1] and decoded == [6, 6, 4]


@pytest.mark.parametrize("size", [(1, 1), (7, 33)])
def test_any_size_and_every_size_of_network(size):
    sampler = small(channels=2, depth=3)
    assert sampler.sample(torch.rand(2, 2, *size), 3).shape == (3, 2, 2, *size)


def test_wrong_arguments_are_one_clear_line():
    with pytest.raises(ValueError, match="DivNoising: got depth=0"):
        small(depth=0)
    with pytest.raises(ValueError, match=r"DivNoising: .* channels=3"):
        small().prepare(torch.rand(1, 3, 16, 16), torch.zeros(3, 1, 1), torch.ones(3, 1, 1))


@pytest.mark.slow
def test_denoises_a_field_without_posterior_collapse():
    field = LinearGaussianField(noise_std=20.0)
    torch.manual_seed(0)
    clean = field.prior(64, (32, 32))
    noisy = field.observe(clean)
    sampler = DivNoising(GaussianNoise(20.0), filters=8, latents=8, kl_warmup=100)
    sampler.prepare(noisy, noisy.mean().view(1, 1, 1), noisy.std().view(1, 1, 1))
    optimizer = torch.optim.AdamW(sampler.parameters(), 3e-3, betas=(0.9, 0.99))
    for _ in range(160):
        loss, _ = sampler.training_step(noisy[torch.randint(0, 64, (16,))])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    error = (posterior_mean(sampler, noisy, 20) - clean).square().mean().sqrt()
    assert error < 11  # noise and field have 20, the Wiener filter 5.7, a collapsed posterior 20
