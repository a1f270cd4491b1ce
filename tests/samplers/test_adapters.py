import sys

import pytest
import torch
from torch import nn

from samplers import DiffusionSampler, Ensemble, MonteCarloDropout, posterior_mean
from samplers.testing import check_sampler
from students.upscale import Nearest

NOISY = 100 + 20 * torch.randn(5, 1, 8, 9)


class Shift(nn.Module):
    def __init__(self, by: float) -> None:
        super().__init__()
        self.by, self.seen = by, 0

    def forward(self, noisy):
        assert not self.training and not torch.is_grad_enabled()
        self.seen += len(noisy)
        return noisy + self.by


def test_each_draw_of_each_image_is_one_networks_output():
    ensemble = Ensemble([Shift(0), Shift(1), Shift(2)])
    shifts = (ensemble.sample(NOISY, 300) - NOISY)[:, :, 0, 0, 0].round()
    assert (shifts != shifts[:, :1]).any()  # the images of a batch do not share their choice
    assert shifts.unique().tolist() == [0, 1, 2]
    assert (shifts.mean(dim=0) - 1).abs().max() < 0.2
    assert all(network.seen <= len(NOISY) for network in ensemble.networks)


def test_one_draw_costs_one_pass_per_image_and_the_networks_are_frozen():
    ensemble = Ensemble([Shift(0), Shift(1)])
    ensemble.sample(NOISY)
    assert sum(network.seen for network in ensemble.networks) == len(NOISY)
    assert not Ensemble([nn.Conv2d(1, 1, 1)]).trainable


def test_networks_in_standardized_units():
    ensemble = Ensemble([Shift(0.5)], mean=100.0, std=20.0)
    torch.testing.assert_close(ensemble.sample(NOISY)[0], NOISY + 10)
    dropout = MonteCarloDropout(nn.Dropout(0.5), mean=100.0, std=20.0)
    kept = dropout.sample(NOISY)[0]
    torch.testing.assert_close(kept[kept != 100], (2 * NOISY - 100)[kept != 100])


def test_only_dropout_is_in_training_mode_while_drawing():
    class Watch(nn.Module):
        def forward(self, x):
            assert not self.training
            return x

    norm = nn.BatchNorm2d(1)
    network = nn.Sequential(Watch(), norm, nn.Dropout2d(0.5), nn.Dropout(0.5))
    sampler = MonteCarloDropout(network)
    statistics = norm.running_mean.clone()
    for training in (True, False):
        draws = sampler.train(training).sample(NOISY, 4)
        assert (draws[0] != draws[1]).any() and not draws.requires_grad
        assert {module.training for module in sampler.modules()} == {training}
    assert torch.equal(norm.running_mean, statistics)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Ensemble([]), "no networks"),
        (lambda: Ensemble([Shift(0)], std=0.0), "std=0.0"),
        (lambda: MonteCarloDropout(nn.Conv2d(1, 1, 1)), "no dropout module"),
        (lambda: MonteCarloDropout(nn.Dropout(0.0)), "no dropout module"),
        (lambda: DiffusionSampler(Seeded(), black=1, white=1, noise_std=1), "black"),
        (lambda: DiffusionSampler(Seeded(), black=0, white=1), "noise_std"),
    ],
)
def test_wrong_arguments_are_one_clear_line(make, message):
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


class Seeded(nn.Module):
    """As some of deepinv's do: a private generator, which only a seed other than 0 sets."""

    def __init__(self) -> None:
        super().__init__()
        self.seeds = []

    def forward(self, y, physics, seed=None):
        assert 0 < y.mean() < 1 and not torch.is_inference_mode_enabled()
        self.seeds.append(seed)
        torch.manual_seed(seed or 0)
        return (y + 0.05 * torch.randn_like(y)).double()


def test_every_diffusion_has_its_own_seed_and_leaves_torchs_random_state():
    model = Seeded()
    sampler = DiffusionSampler(model, black=0, white=200, physics=nn.Identity())
    with torch.inference_mode():
        draws = sampler.sample(NOISY, 20)
    assert len(set(model.seeds)) == 20 and 0 not in model.seeds
    assert draws.dtype == NOISY.dtype and (draws - NOISY).std() == pytest.approx(10, rel=0.1)
    check_sampler(sampler)


class Mask(nn.Module):
    """As deepinv's Inpainting: y = mask x + noise."""

    def __init__(self, mask, sigma):
        super().__init__()
        self.mask, self.sigma = mask, sigma


class ExactInpainting(nn.Module):
    """Draws for pixels from N(0.5, 0.1^2)."""

    def forward(self, y, physics):
        gain = physics.mask * 0.01 / (0.01 + physics.sigma**2)
        return 0.5 + gain * (y - 0.5) + (0.01 * (1 - gain)).sqrt() * torch.randn_like(y)


def test_missing_pixels_are_drawn_from_the_prior_and_others_from_their_posterior():
    noisy = 100 + 200 * (0.5 + 0.15 * torch.randn(3, 1, 40, 40))
    noisy[torch.rand_like(noisy) < 0.3] = 0
    missing = noisy == 0
    sampler = DiffusionSampler(
        ExactInpainting(), black=100, white=300, physics=lambda y: Mask((y > -0.4).float(), sigma=0.1)
    )
    draws = sampler.sample(noisy, 200)
    mean, std = draws.mean(0), draws.std(0)
    assert float((mean[missing] - 200).std()) == pytest.approx(20 / 200**0.5, rel=0.2)
    assert float(std[missing].mean()) == pytest.approx(20, rel=0.02)
    assert float(std[~missing].mean()) == pytest.approx(20 / 2**0.5, rel=0.02)
    assert float((mean - (noisy + 200) / 2)[~missing].std()) == pytest.approx(1, rel=0.2)
    check_sampler(sampler, noisy.where(~missing, 200))


class ExactSuperResolution(nn.Module):
    """Draws of which each 2 x 2 pixels have the mean that was measured, exactly."""

    def forward(self, y, physics):
        large = Nearest(2)(y)
        detail = 0.1 * torch.randn_like(large)
        return large + detail - Nearest(2)(physics(detail))


def test_draws_of_super_resolution_are_twice_as_large_and_fit_what_was_measured():
    noisy = 100 + 20 * torch.randn(2, 1, 8, 9)
    sampler = DiffusionSampler(ExactSuperResolution(), black=0, white=200, physics=nn.AvgPool2d(2), scale=2)
    draws = sampler.sample(noisy, 3)
    torch.testing.assert_close(nn.AvgPool2d(2)(draws[1]), noisy)
    assert draws.shape == (3, 2, 1, 16, 18) and float((draws[0] - draws[1]).std()) > 10
    check_sampler(sampler)


@pytest.mark.slow
def test_diffusions_with_physics_reach_their_closed_forms():
    """Pixels from N(0.5, 0.15^2): missing ones, and means of 2 x 2, each in Gaussian noise."""
    deepinv = pytest.importorskip("deepinv")
    from deepinv import physics, sampling

    mean, spread, noise = 0.5, 0.15, 0.1

    class Exact(deepinv.models.Denoiser):
        def forward(self, x, sigma, **_):
            variance = torch.as_tensor(sigma, dtype=x.dtype).reshape(-1, 1, 1, 1) ** 2
            return (mean * variance + spread**2 * x) / (spread**2 + variance)

    torch.manual_seed(0)
    model = sampling.PosteriorDiffusion(
        sampling.MomentMatchingDataFidelity(), Exact(), sampling.VarianceExplodingDiffusion(alpha=1.0),
        sampling.EulerSolver(torch.linspace(1, 0.001, 100)),
    )  # fmt: skip
    sensor = physics.GaussianNoise(noise)
    units = {"black": 100, "white": 300}
    clean = mean + spread * torch.randn(1, 1, 24, 24)
    kept = torch.rand_like(clean) > 0.3

    noisy = 100 + 200 * (clean + noise * torch.randn_like(clean)) * kept
    holes = DiffusionSampler(model, **units, physics=lambda y: physics.Inpainting(
        y.shape[1:], mask=(y != 0).float(), noise_model=sensor))  # fmt: skip
    draws = holes.sample(noisy, 16)
    gain = spread**2 / (spread**2 + noise**2)
    assert float(draws.std(0)[~kept].mean()) == pytest.approx(200 * spread, rel=0.05)
    assert float(draws.std(0)[kept].mean()) == pytest.approx(200 * noise * gain**0.5, rel=0.05)
    expected = 200 + gain * (noisy - 200)
    assert float((draws.mean(0) - expected)[kept].std()) == pytest.approx(50 * noise * gain**0.5, rel=0.1)

    every_other = physics.Downsampling(filter=None, factor=2, noise_model=sensor)
    small = every_other.A(clean)
    noisy = 100 + 200 * (small + noise * torch.randn_like(small))
    draws = DiffusionSampler(model, **units, physics=every_other, scale=2).sample(noisy, 16)
    assert draws.shape == (16, 1, 1, 24, 24)
    seen = draws[..., ::2, ::2]
    assert float(seen.std(0).mean()) == pytest.approx(200 * noise * gain**0.5, rel=0.06)
    assert float(draws[..., 1::2, :].std(0).mean()) == pytest.approx(200 * spread, rel=0.06)
    expected = 200 + gain * (noisy - 200)
    assert float((seen.mean(0) - expected).std()) == pytest.approx(50 * noise * gain**0.5, rel=0.15)


@pytest.mark.slow
def test_a_diffusion_reaches_the_closed_form_posterior():
    """Pixels from N(mean, spread^2) in Gaussian noise: the exact denoiser is known, and so is the
    posterior; moment matching is exact for it."""
    deepinv = pytest.importorskip("deepinv")
    from deepinv.sampling import (
        EulerSolver,
        MomentMatchingDataFidelity,
        PosteriorDiffusion,
        VarianceExplodingDiffusion,
    )

    mean, spread, noise = 0.5, 0.15, 0.1  # of [0, 1]

    class Exact(deepinv.models.Denoiser):
        def forward(self, x, sigma, **_):
            variance = torch.as_tensor(sigma, dtype=x.dtype).reshape(-1, 1, 1, 1) ** 2
            return (mean * variance + spread**2 * x) / (spread**2 + variance)

    torch.manual_seed(0)
    clean = mean + spread * torch.randn(1, 1, 24, 24)
    noisy = 100 + 200 * (clean + noise * torch.randn_like(clean))
    model = PosteriorDiffusion(
        MomentMatchingDataFidelity(),
        Exact(),
        VarianceExplodingDiffusion(alpha=1.0),
        EulerSolver(torch.linspace(1, 0.001, 100)),
    )
    sampler = DiffusionSampler(model, black=100, white=300, noise_std=200 * noise)
    draws = sampler.sample(noisy, 16)
    gain = spread**2 / (spread**2 + noise**2)
    expected, std = 200 + gain * (noisy - 200), 200 * noise * gain**0.5
    assert draws.std(dim=0).square().mean().sqrt() == pytest.approx(std, rel=0.05)
    assert (draws.mean(dim=0) - expected).square().mean().sqrt() == pytest.approx(std / 4, rel=0.1)
    assert posterior_mean(sampler, noisy, 2).shape == noisy.shape


def test_without_deepinv_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "deepinv.physics", None)
    with pytest.raises(ValueError, match=r"pip install 'posterior-distill\[diffusion\]'"):
        DiffusionSampler(Seeded(), black=0, white=1, noise_std=0.1)
