import pytest
import torch

from distill import UserError, load_denoiser, train
from losses import EnergyScore
from samplers import FunctionSampler, OnePassSampler
from samplers.testing import check_sampler
from students import NoiseConditioned, UNet
from students.noise_conditioned import smooth_noise

QUICK = dict(batch_size=2, micro_batch=2, patch_size=16, validate_every=2, device="cpu")


def tiny(in_channels: int = 4) -> NoiseConditioned:
    return NoiseConditioned(UNet(in_channels=in_channels, depth=2, filters=4))


def test_draws_differ_and_depend_on_the_image():
    network, x = tiny().eval(), torch.randn(3, 1, 20, 24)
    draws = network(x)
    assert draws.shape == (3, 2, 20, 24)
    assert not torch.equal(draws[:, 0], draws[:, 1]) and not torch.equal(draws, network(x))


@pytest.mark.parametrize("scale", [1, 4, 16])
def test_noise_is_the_same_everywhere(scale):
    """Variance 1 in every pixel, and no correlation from `scale` pixels on."""
    noise = smooth_noise(torch.zeros(4000, 1, 20, 24), scale)[:, 0]
    assert noise.shape == (4000, 20, 24)
    assert (noise.var(0) - 1).abs().max() < 0.15
    correlation = (noise * noise[:, :1, :1]).mean(0)
    assert correlation[scale:].abs().max() < 0.1 and correlation[:, scale:].abs().max() < 0.1


def test_a_trained_one_is_a_sampler_in_its_own_right(noisy, tmp_path):
    teacher = FunctionSampler(lambda x: x + 10 * torch.randn_like(x))
    train(noisy, teacher, tiny(), EnergyScore(), tmp_path, steps=2, refine_steps=0, **QUICK)
    denoiser = load_denoiser(tmp_path)
    sampler = OnePassSampler(denoiser)
    assert sampler.sample(torch.from_numpy(noisy[:2, None]), 5).shape == (5, 2, 1, 48, 40)
    check_sampler(sampler, torch.from_numpy(noisy[:2, None]))


def test_a_backbone_without_room_for_noise(noisy, tmp_path):
    with pytest.raises(UserError, match="leaves none for noise"):
        train(noisy, FunctionSampler(lambda x: x), tiny(1), EnergyScore(), tmp_path, steps=1, **QUICK)
    with pytest.raises(ValueError, match="NoiseConditioned: got samples=1"):
        NoiseConditioned(UNet(in_channels=2), samples=1)


@pytest.mark.slow
def test_learns_mean_and_spread_of_the_draws():
    """Draws N(x, 2^2), each pixel for itself."""
    network = NoiseConditioned(UNet(in_channels=3, depth=1, filters=8), scales=[1])
    optimizer, loss = torch.optim.Adam(network.parameters(), 6e-3), EnergyScore(windows=[1])
    for _ in range(100):
        x = torch.randn(8, 1, 16, 16)
        optimizer.zero_grad()
        loss(network(x), x + 2 * torch.randn(4, 8, 1, 16, 16)).backward()
        optimizer.step()
    x = torch.randn(4, 1, 16, 16)
    with torch.no_grad():
        draws = torch.cat([network(x) for _ in range(100)], dim=1)
    assert (draws.mean(1) - x[:, 0]).abs().mean() < 0.4
    assert abs(draws.std(1).mean() - 2) < 0.3
