"""Gaussian noise that is correlated between pixels."""

import pytest
import torch
from torch.distributions import MultivariateNormal

from samplers import HDN, CorrelatedNoise, GaussianNoise, LinearGaussianField, load_noise_model
from samplers.testing import check_sampler

ROWS = [[0.1, 0.5, 1.0, 0.5, 0.1]]
BLUR = [[0.25, 0.4, 0.15], [0.4, 1.0, 0.4], [0.15, 0.4, 0.25]]


def correlation(images: torch.Tensor, down: int, right: int) -> float:
    """At a distance, of images (N, 1, H, W), their borders joined."""
    return float((images * images.roll((-down, -right), (-2, -1))).mean() / images.square().mean())


@pytest.mark.parametrize("table", [ROWS, BLUR])
def test_samples_have_the_variance_and_the_correlation(table):
    torch.manual_seed(0)
    noise = CorrelatedNoise(table, gain=2.0, offset=5.0)
    signal = torch.tensor([10.0, 100.0]).view(2, 1, 1, 1).expand(2, 1, 500, 500)
    residual = noise.sample(signal) - signal
    torch.testing.assert_close(residual.var((1, 2, 3)), noise.variance(signal)[:, 0, 0, 0], rtol=0.03, atol=0)
    below, beside = noise.neighbours
    assert correlation(residual, 1, 0) == pytest.approx(below, abs=0.02)
    assert correlation(residual, 0, 1) == pytest.approx(beside, abs=0.02)
    assert correlation(residual, 0, 7) == pytest.approx(0, abs=0.02)


def test_without_correlation_it_is_gaussian_noise():
    noisy, signal = 50 + 10 * torch.randn(2, 1, 9, 12), 50 + torch.rand(2, 1, 9, 12)
    line = dict(gain=2.0, offset=5.0)
    wanted = GaussianNoise(**line).log_likelihood(noisy, signal)
    torch.testing.assert_close(CorrelatedNoise([[1.0]], **line).log_likelihood(noisy, signal), wanted)


@pytest.mark.parametrize(("height", "width"), [(6, 6), (5, 7), (4, 9)])
def test_the_likelihood_of_an_image_is_that_of_one_normal_distribution(height, width):
    """Whose covariance is the correlation, with the borders joined, scaled by the pixels' noise."""
    noise = CorrelatedNoise(ROWS, gain=2.0, offset=5.0)
    signal = 20 + 50 * torch.rand(1, 1, height, width)
    noisy = signal + 10 * torch.randn_like(signal)
    one = torch.zeros(height, width)
    for distance, value in zip(range(-2, 3), ROWS[0], strict=True):
        one[0, distance] = value
    rows = [one.roll((y, x), (0, 1)).flatten() for y in range(height) for x in range(width)]
    std = noise.variance(signal).sqrt().flatten()
    covariance = torch.stack(rows) * std[:, None] * std
    wanted = MultivariateNormal(signal.flatten(), covariance).log_prob(noisy.flatten())
    torch.testing.assert_close(noise.log_likelihood(noisy, signal).sum(), wanted, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("table", [ROWS, BLUR])
def test_the_parts_of_a_split_are_independent(table):
    torch.manual_seed(0)
    noise, signal = CorrelatedNoise(table, offset=25.0), torch.full((40, 1, 100, 100), 70.0)
    first, second = (part - signal for part in noise.split(noise.sample(signal), 0.7))
    assert float(first.var()) == pytest.approx(25 / 0.7, rel=0.03)
    assert float(second.var()) == pytest.approx(25 / 0.3, rel=0.03)
    for down, right in ((0, 0), (0, 1), (1, 0), (1, 1)):
        both = (first * second.roll((-down, -right), (-2, -1))).mean() / first.std() / second.std()
        assert abs(float(both)) < 0.01


def test_residuals_of_a_posterior_mean_tell_the_noise_that_the_mean_has_kept():
    torch.manual_seed(0)
    field = LinearGaussianField()
    noisy = field.observe(field.prior(8, (256, 256)))
    residual = noisy - field.posterior_mean(noisy)
    assert float(residual.var()) < 0.95 * field.noise_std**2
    found = CorrelatedNoise.from_residuals(residual, noisy)
    assert float(found.variance(noisy.mean())) == pytest.approx(field.noise_std**2, rel=0.03)
    assert max(map(abs, found.neighbours)) < 0.03


def test_frames_of_one_field_tell_the_noise_by_their_differences():
    torch.manual_seed(0)
    noise = CorrelatedNoise(BLUR, gain=2.0, offset=5.0)
    field = LinearGaussianField(std=15.0, correlation_length=8.0)
    one, other = (field.prior(n, (256, 256)).clamp(min=30) for n in (1, 4))
    guess = CorrelatedNoise([[1.0]], gain=1.5)
    repeats = one.expand(4, -1, -1, -1)
    found = guess.or_from_repeats(noise.sample(repeats), lambda _: repeats)
    levels = torch.tensor([70.0, 100.0, 130.0])
    torch.testing.assert_close(found.variance(levels), noise.variance(levels), rtol=0.06, atol=0)
    assert found.neighbours == pytest.approx(noise.neighbours, abs=0.03)
    assert guess.or_from_repeats(noise.sample(other), lambda _: other) is guess  # each shows another field
    assert guess.or_from_repeats(noise.sample(one), lambda _: one) is guess  # a single frame
    still = noise.sample(one) + noise.sample(one) - one  # most of the noise is the same in all frames
    assert guess.or_from_repeats(still + torch.randn(4, 1, 256, 256), lambda _: repeats) is guess


def test_an_image_may_be_smaller_than_the_reach():
    noise = CorrelatedNoise([[0.5] * 20 + [1.0] + [0.5] * 20], offset=4.0)
    for size in ((1, 5), (8, 8), (3, 40)):
        signal = torch.full((2, 1, *size), 10.0)
        noisy = noise.sample(signal)
        assert noisy.shape == signal.shape and noise.log_likelihood(noisy, signal).isfinite().all()


def test_its_file_and_a_vae_of_it(tmp_path):
    noise = CorrelatedNoise(BLUR, gain=2.0, offset=5.0)
    noise.write(tmp_path / "noise.npz")
    read = load_noise_model(tmp_path / "noise.npz")
    assert isinstance(read, CorrelatedNoise)
    assert read.variance(torch.tensor(50.0)) == noise.variance(torch.tensor(50.0))
    torch.testing.assert_close(torch.tensor(read.correlation), torch.tensor(noise.correlation))
    sampler = HDN(noise, levels=2, latents=4, filters=8, blocks=1)
    assert not sampler.isotropic
    check_sampler(sampler)


@pytest.mark.parametrize("table", [[[1.0, 0.5]], [[0.5, 1.0, 0.2]], [[0.5, 0.9, 0.5]], [1.0]])
def test_what_is_no_correlation_is_refused(table):
    with pytest.raises(ValueError, match="two odd sides, 1 at its centre"):
        CorrelatedNoise(table, offset=1.0)


def test_it_may_be_mirrored_as_its_table_is():
    lines, blur = [[0.9, 1.0, 0.9]], [[0.2, 0.4, 0.2], [0.4, 1.0, 0.4], [0.2, 0.4, 0.2]]
    slanted = [[0.6, 0.4, 0.0], [0.4, 1.0, 0.4], [0.0, 0.4, 0.6]]
    ways = {True: ("y", "x", "yx"), False: ("yx",)}
    for table, isotropic, upright in ((lines, False, True), (blur, True, True), (slanted, False, False)):
        noise = CorrelatedNoise(table, offset=1.0)
        assert noise.isotropic == isotropic and tuple(noise.mirrors) == ways[upright]
    assert not CorrelatedNoise([*zip(*lines, strict=True)], offset=1.0).isotropic


def test_correlation_at_chosen_distances():
    noise = CorrelatedNoise([[0.1, 0.2, 0.3], [0.4, 1.0, 0.4], [0.3, 0.2, 0.1]], offset=1.0)
    found = noise.at([(0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (5, 5)])
    assert found.tolist() == pytest.approx([1.0, 0.4, 0.2, 0.2, 0.0, 0.0])
