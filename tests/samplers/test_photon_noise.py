"""Photon-counting noise, and images split into two with independent noise."""

import math

import pytest
import torch

from samplers import GaussianNoise, PhotonNoise, load_noise_model

CONFOCAL = dict(gain=3.5, offset=-11.5, read_noise=0.55, shape=3.0)


@pytest.mark.parametrize("more", [{}, {"shape": math.inf}, {"read_noise": 4.0, "offset": 5.0}])
def test_samples_have_the_line_as_variance(more):
    torch.manual_seed(0)
    noise = PhotonNoise(**(CONFOCAL | more))
    for photons in (0.5, 3.0, 40.0):
        signal = torch.full((400_000,), noise.black + photons * noise.gain)
        noisy = noise.sample(signal)
        assert noisy.mean().item() == pytest.approx(signal[0].item(), abs=0.05 * noise.gain)
        line = noise.gain * signal[0].item() + noise.offset
        assert noisy.var().item() == pytest.approx(line, rel=0.02)
        assert noise.variance(signal)[0].item() == pytest.approx(line, rel=1e-4)


@pytest.mark.parametrize("more", [{}, {"shape": math.inf}, {"read_noise": 4.0, "offset": 5.0}])
@pytest.mark.parametrize("photons", [0.7, 3.0, 30.0])
def test_parts_have_the_signal_the_line_and_independent_noise(more, photons):
    torch.manual_seed(0)
    noise = PhotonNoise(**(CONFOCAL | more))
    signal = torch.full((4, 1, 256, 256), noise.black + photons * noise.gain)
    noisy = noise.sample(signal)
    for share in (0.5, 0.8):
        first, second = noise.split(noisy, share)
        torch.testing.assert_close(share * first + (1 - share) * second, noisy, rtol=1e-4, atol=1e-3)
        std = noise.variance(signal).sqrt()[0, 0, 0, 0].item()
        assert first.mean().item() == pytest.approx(signal[0, 0, 0, 0].item(), abs=0.05 * std)
        assert first.var().item() == pytest.approx(std**2 / share, rel=0.08)
        together = torch.stack([first.flatten(), second.flatten()])
        assert abs(torch.corrcoef(together)[0, 1].item()) < 0.06


@pytest.mark.parametrize("share", [0.6, 0.95])
def test_parts_have_the_image_as_their_mean_even_where_a_dark_pixel_has_bright_neighbours(share):
    torch.manual_seed(0)
    noise = PhotonNoise(2.0, 0.0, 2.5)
    noisy = torch.full((1, 1, 100, 100), noise.black + 20.0)
    above = torch.tensor([-3.0, 0.5, 1.5, 3.0, 8.0])
    noisy[..., 2::5, 2::5] = noise.black + above.repeat(80).view(20, 20)
    parts = torch.stack([torch.stack(noise.split(noisy, share)) for _ in range(100)])  # (100, 2, 1, 1, H, W)
    off = (parts - noisy)[..., 2::5, 2::5].flatten(-2).unflatten(-1, (80, 5)).movedim((-1, 1), (0, 1))
    off = off.flatten(2)  # (darkness, part, samples)
    mean, error = off.mean(-1), off.std(-1) / off.shape[-1] ** 0.5
    assert (mean.abs() < 4 * error).all()


def test_gaussian_noise_of_a_constant_std_is_split_exactly():
    torch.manual_seed(0)
    first, second = GaussianNoise(5.0).split(100 + 5 * torch.randn(4, 1, 256, 256), 0.8)
    assert first.var().item() == pytest.approx(25 / 0.8, rel=0.02)
    assert second.var().item() == pytest.approx(25 / 0.2, rel=0.02)
    assert abs(torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1].item()) < 0.01
    with pytest.raises(ValueError, match="constant std"):
        GaussianNoise(gain=1.0, offset=0.0).split(first, 0.5)


def test_the_likelihood_is_a_density_and_has_a_slope_everywhere():
    noise = PhotonNoise(**CONFOCAL)
    y = torch.arange(-20.0, 150.0, 0.05)
    for signal in (4.0, 8.0, 40.0):
        density = noise.log_likelihood(y, torch.tensor(signal)).exp().sum().item() * 0.05
        assert density == pytest.approx(1, abs=0.03)
    signal = torch.tensor([-1e4, -3.0, 3.4, 10.0, 1e4], requires_grad=True)
    noise.log_likelihood(torch.tensor([20.0]), signal).sum().backward()
    assert signal.grad is not None and signal.grad.isfinite().all() and (signal.grad != 0).all()


def test_the_law_is_fitted_and_kept_in_a_file(tmp_path):
    torch.manual_seed(0)
    signal = 3.4 + 30 * torch.rand(1, 1, 256, 256) ** 2
    found = {}
    for true in (PhotonNoise(**CONFOCAL), PhotonNoise(2.0, 3.0, 3.0)):
        noise = PhotonNoise.fit(true.sample(signal), signal, true.gain, true.offset)
        assert noise.read_noise == pytest.approx(true.read_noise, rel=0.25)
        found[true.shape] = noise
    assert found[3.0].shape in (1.5, 3.0, 6.0)
    found[3.0].write(tmp_path / "noise.npz")
    loaded = load_noise_model(tmp_path / "noise.npz")
    assert isinstance(loaded, PhotonNoise)
    assert (loaded.gain, loaded.read_noise, loaded.shape) == (3.5, found[3.0].read_noise, found[3.0].shape)
    with pytest.raises(ValueError, match="above 0"):
        PhotonNoise(0.0, 1.0, 1.0)
