import inspect
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from samplers import BimodalPixels, LinearGaussianField, SkewedPixels, ThreeScenes

PIXELWISE = [SkewedPixels(), BimodalPixels(), BimodalPixels(weight_low=0.6, weight_high=0.8)]
LEVELS = torch.tensor([20.0, 80.0, 100.0, 113.0, 200.0]).view(1, 1, 1, -1)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("sampler", [LinearGaussianField(), *PIXELWISE, ThreeScenes()])
def test_interface(sampler):
    noisy = 100 + 20 * torch.randn(2, 3, 9, 14)
    draws = sampler.sample(noisy, 5)
    assert draws.shape == (5, 2, 3, 9, 14) and draws.dtype == noisy.dtype
    assert not sampler.trainable and not list(sampler.parameters())
    torch.manual_seed(1)
    first = sampler.sample(noisy)
    torch.manual_seed(1)
    assert torch.equal(first, sampler.sample(noisy))
    arguments = {name: getattr(sampler, name) for name in inspect.signature(type(sampler)).parameters}
    assert vars(type(sampler)(**arguments)).keys() == vars(sampler).keys()


@pytest.mark.parametrize("sampler", PIXELWISE)
def test_draws_match_the_closed_forms(sampler):
    n = 100_000
    draws = sampler.sample(LEVELS, n).double()
    variance = sampler.variance(LEVELS)
    error = (variance / n).sqrt()
    assert ((draws.mean(0) - sampler.mean(LEVELS)).abs() < 5 * error).all()
    torch.testing.assert_close(draws.var(0).float(), variance, rtol=0.06, atol=0)
    for q in (0.05, 0.5, 0.95):
        exact = sampler.median(LEVELS) if q == 0.5 else sampler.quantile(LEVELS, q)
        below = (draws <= exact).double().mean(0)
        assert (below - q).abs().max() < 5 * math.sqrt(q * (1 - q) / n)


@pytest.mark.parametrize("sampler", PIXELWISE)
def test_functionals_differ(sampler):
    mean, median, mode = (f(LEVELS) for f in (sampler.mean, sampler.median, sampler.mode))
    for a, b, least in ((mean, median, 1.0), (median, mode, 0.5), (mean, mode, 2.0)):
        assert ((a - b).abs() > least).all()


def log_density(sampler, noisy, signal):
    if isinstance(sampler, SkewedPixels):
        location, scale, sigma = sampler._law(noisy)
        z = ((signal - location) / scale).log()
        return -z - 0.5 * (z / sigma) ** 2
    lower, upper, weight = sampler._law(noisy)
    a, b = (-0.5 * ((signal - peak) / sampler.std) ** 2 for peak in (lower, upper))
    return torch.logaddexp((1 - weight).log() + a, weight.log() + b)


@pytest.mark.parametrize("sampler", PIXELWISE)
@given(level=st.floats(-50, 250))
@settings(max_examples=20, deadline=None)
def test_mode_is_the_highest_point(sampler, level):
    noisy = torch.full((1, 1, 1, 1), level, dtype=torch.float64)
    mode = sampler.mode(noisy).requires_grad_()
    (slope,) = torch.autograd.grad(log_density(sampler, noisy, mode), mode)
    assert slope.abs() < 1e-8
    left, right = sampler.quantile(noisy, 1e-4).item(), sampler.quantile(noisy, 1 - 1e-4).item()
    grid = torch.linspace(left, right, 20001, dtype=torch.float64)
    assert log_density(sampler, noisy, grid).max() <= log_density(sampler, noisy, mode) + 1e-12


def test_the_likeliest_scene_is_not_made_of_the_likeliest_values():
    scenes, noisy = ThreeScenes(), torch.tensor([[80.0, 130.0]]).double().view(1, 1, 1, 2)
    draws = scenes.sample(noisy.expand(200_000, 1, 1, 2))[0].flatten(1)  # (n, 2): a dark and a bright pixel
    assert (draws.mean(0) - scenes.mean(noisy).flatten()).abs().max() < 0.5
    location = torch.tensor([86.0, 121.0])
    offsets = torch.tensor(list(zip(scenes.dark, scenes.bright, strict=True)))

    def density(at, peaks):
        squares = ((at - peaks) / scenes.std).square().flatten(1).sum(1)
        return float((torch.tensor(scenes.weights) * (-squares / 2).exp()).sum())

    for pixel, mode in enumerate(scenes.mode(noisy).flatten()):
        peaks = location[pixel] + 40 * offsets[:, pixel, None]
        assert all(density(mode, peaks) >= density(at, peaks) for at in torch.arange(0.0, 200.0, 0.25))
        near = ((draws[:, pixel] - mode).abs() < 2).double().mean()
        assert near == pytest.approx(0.383 * (0.6 if pixel else 0.4), abs=0.01)
    peaks, joint = location + 40 * offsets, scenes.joint_mode(noisy).flatten()
    grid = torch.cartesian_prod(torch.arange(20.0, 160.0, 1.0), torch.arange(60.0, 200.0, 1.0))
    assert all(density(joint, peaks) >= density(at, peaks) for at in grid)
    assert density(scenes.mode(noisy).flatten(), peaks) < 1e-10


@pytest.mark.parametrize("shape", [(5, 6), (4, 7)])
def test_wiener_filter_and_posterior_match_dense_matrices(shape):
    field = LinearGaussianField(mean=50, std=7, correlation_length=1.5, noise_std=4)
    n = math.prod(shape)
    noisy = (50 + 10 * torch.randn(1, 1, *shape)).double()
    basis = torch.eye(n, dtype=torch.float64).view(n, 1, *shape)
    prior = field._filter(basis, field._spectrum(basis)).view(n, n)
    torch.testing.assert_close(prior.diagonal(), torch.full((n,), 49.0).double())
    total = prior + 16 * torch.eye(n)
    mean = 50 + prior @ torch.linalg.solve(total, (noisy - 50).flatten())
    covariance = prior - prior @ torch.linalg.solve(total, prior)
    torch.testing.assert_close(field.posterior_mean(noisy).flatten(), mean)
    std = field.posterior_std(noisy).flatten()
    torch.testing.assert_close(std, covariance.diagonal().sqrt())
    draws = field.sample(noisy, 40_000).reshape(-1, n)
    assert (draws.mean(0) - mean).abs().max() < 5 * std[0] / 200
    assert (draws.T.cov() - covariance).abs().max() < 5 * std[0] ** 2 * math.sqrt(2 / 40_000)


def test_field_prior_has_the_stated_moments():
    field = LinearGaussianField(mean=100, std=20, noise_std=30)
    generator = torch.Generator().manual_seed(3)
    clean = field.prior(300, (24, 31), generator)
    assert clean.shape == (300, 1, 24, 31)
    assert abs(clean.mean() - 100) < 2.5
    assert abs((clean - 100).square().mean().sqrt() / 20 - 1) < 0.06
    noisy = field.observe(clean, generator)
    assert abs((noisy - clean).std() - 30) < 0.3
    wiener = (field.posterior_mean(noisy) - clean).square().mean().sqrt()
    assert abs(wiener / field.posterior_std(noisy)[0, 0, 0, 0] - 1) < 0.02


def test_field_takes_volumes():
    noisy = torch.rand(2, 1, 3, 8, 5) * 100
    assert LinearGaussianField().sample(noisy, 3).shape == (3, *noisy.shape)


@pytest.mark.parametrize(
    "make",
    [
        lambda: LinearGaussianField(std=0),
        lambda: SkewedPixels(spread=-1),
        lambda: BimodalPixels(separation=5),
        lambda: ThreeScenes(separation=5),
        lambda: SkewedPixels().quantile(LEVELS, 1.0),
    ],
)
def test_bad_arguments(make):
    with pytest.raises(ValueError, match="got"):
        make()
