"""Independent pixels of a Gamma prior: the posterior of their shares is Dirichlet(a + photons)."""

import pytest
import torch
from torch import nn

from samplers import NextPhoton, WithLevel, posterior_mean
from samplers.testing import check_sampler
from students import LightUNet

SHAPE = 3.0


class GammaPixels(nn.Module):
    """The exact predictive: the next photon falls in proportion to a + photons."""

    def __init__(self, a: float = SHAPE) -> None:
        super().__init__()
        self.log_a = nn.Parameter(torch.tensor(a).log())

    def forward(self, photons):
        return (self.log_a.exp() + photons).log()


def images(count: int, level: float = 2.0, size: int = 8) -> torch.Tensor:
    rate = torch.distributions.Gamma(SHAPE, SHAPE / level).sample((count, 1, size, size))
    return torch.poisson(rate)


def dirichlet(photons: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance of the signal, in photons."""
    total = photons.sum()
    weight = photons + SHAPE
    share = weight / weight.sum()
    return total * share, total**2 * share * (1 - share) / (weight.sum() + 1)


@pytest.mark.parametrize(("growth", "accumulation", "passes"), [(0.02, 60.0, 207), (0.5, 10.0, 6)])
def test_draws_have_the_posteriors_mean_and_the_variance_that_is_told(growth, accumulation, passes):
    photons = images(1)
    sampler = NextPhoton(GammaPixels(), gain=4.0, black=100.0, growth=growth, accumulation=accumulation)
    assert sampler.passes == passes
    draws = (torch.cat(list(sampler.sample((4 * photons + 100).expand(500, -1, -1, -1), 2))) - 100) / 4
    mean, variance = dirichlet(photons)
    torch.testing.assert_close((sampler.predictive(4 * photons + 100) - 100) / 4, mean)
    assert ((draws.mean(0) - mean[0]) / (variance[0] / 1000).sqrt()).abs().max() < 4.5
    # Every round leaves out how far its own photons would have changed the distribution.
    total, prior, explained = float(photons.sum()), SHAPE * photons.numel(), 0.0
    weight = total + prior
    for _ in range(passes):
        explained += weight * growth * total / (total * (1 + growth) + prior) ** 2
        total *= 1 + growth
    assert float((draws.var(0) / variance[0]).mean()) == pytest.approx(explained, abs=0.03)
    assert explained > 0.93 if growth < 0.1 else explained < 0.75
    torch.testing.assert_close(draws.sum((1, 2, 3)), photons.sum().expand(1000), rtol=1e-4, atol=1e-2)


def test_cross_entropy_finds_the_prior():
    sampler = NextPhoton(GammaPixels(0.5), gain=1.0, accumulation=1.1).train()
    optimizer = torch.optim.Adam(sampler.parameters(), 0.05)
    noisy = images(4000)
    for _ in range(150):
        optimizer.zero_grad()
        sampler.training_step(noisy[torch.randint(len(noisy), (200,))])[0].backward()
        optimizer.step()
    assert sampler.network.log_a.exp().item() == pytest.approx(SHAPE, rel=0.12)


def test_it_keeps_the_rules_of_samplers():
    noisy = torch.poisson(torch.full((2, 1, 16, 16), 30.0))
    for channels in (1, 2):
        network = WithLevel(LightUNet(channels + 1, 2 * channels, width=8, depth=1, unshuffle=1))
        sampler = NextPhoton(network, gain=2.0, channels=channels, accumulation=2.0)
        check_sampler(sampler, noisy.repeat(1, channels, 1, 1))


def test_gain_and_black_level_are_estimated():
    rate = 20 + 30 * torch.rand(4, 1, 8, 8).repeat_interleave(16, 2).repeat_interleave(16, 3)
    noisy = 100 + 3 * torch.poisson(rate)
    sampler = NextPhoton(GammaPixels())
    sampler.prepare(noisy, noisy.mean().view(1, 1, 1), noisy.std().view(1, 1, 1))
    assert float(sampler.gain_of) == pytest.approx(3.0, rel=0.1)
    assert float(sampler.black_of) == pytest.approx(100.0, abs=15.0)
    with pytest.raises(ValueError, match="pass gain"):
        sampler.prepare(100 + 5 * torch.randn(4, 1, 64, 64) + rate[..., :64, :64], noisy, noisy)


def test_an_image_without_a_photon_has_finite_draws():
    draw = posterior_mean(NextPhoton(GammaPixels(), gain=1.0, accumulation=2.0), torch.zeros(1, 1, 8, 8), 2)
    assert draw.isfinite().all() and draw.min() >= 0


@pytest.mark.parametrize("wrong", [{"growth": 0.0}, {"accumulation": 1.0}, {"gain": -1.0}])
def test_wrong_arguments_are_one_line(wrong):
    with pytest.raises(ValueError, match="NextPhoton: got"):
        NextPhoton(GammaPixels(), **wrong)


def test_brighter_images_than_those_of_the_training_are_told(caplog):
    sampler = NextPhoton(GammaPixels(), gain=1.0, accumulation=4.0)
    sampler.sample(torch.full((1, 1, 8, 8), 9.0))
    assert not caplog.records  # a network that was trained elsewhere
    sampler.training_step(torch.full((2, 1, 8, 8), 3.0))
    assert float(sampler.brightest) == 3.0 and "up to 12 per pixel" in caplog.text
    caplog.clear()
    sampler = NextPhoton(GammaPixels(), gain=1.0, accumulation=4.0)
    sampler.cross_entropy(torch.full((2, 1, 8, 8), 3.0))
    sampler.sample(torch.ones(1, 1, 8, 8))
    assert not caplog.records
    for _ in range(2):
        sampler.sample(torch.full((1, 1, 8, 8), 3.0))
    (record,) = caplog.records
    assert "trained up to 3" in record.message


def test_a_network_of_photons_keeps_what_it_is_given():
    network = WithLevel(torch.nn.Conv2d(2, 2, 1)).double()
    photons = 1e7 * (1 + torch.rand(1, 1, 8, 8, dtype=torch.float64))
    assert torch.allclose(network(photons).exp(), photons, rtol=1e-3)
    with pytest.raises(ValueError, match="gives 1 channels for 1 of the image, must be twice as many"):
        WithLevel(torch.nn.Conv2d(2, 1, 1))(photons.float())
