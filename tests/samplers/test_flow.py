"""Gaussian signals in Gaussian noise: the velocity, and what Euler steps make of it, are known."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from distill import train
from losses import L2
from samplers import FlowMatching, WithTime
from samplers.testing import check_sampler
from students import LightUNet, UNet

NOISE = 0.5  # in standard deviations of the signal
GAIN, SPREAD = 1 / (1 + NOISE**2), NOISE / math.sqrt(1 + NOISE**2)  # of the posterior


class Exact(nn.Module):
    """E[x_1 - x_0 | x_t, noisy] for signals N(0, 1)."""

    def forward(self, x, t, noisy):
        t, mean = t[:, None, None, None], GAIN * noisy
        return mean + self.slope(t) * (x - t * mean)

    @staticmethod
    def slope(t):
        return (t * SPREAD**2 - (1 - t)) / ((1 - t) ** 2 + (t * SPREAD) ** 2)


@pytest.mark.parametrize("steps", [1, 4, 100])
def test_draws_have_the_mean_of_the_posterior_and_the_std_that_euler_steps_give(steps):
    sampler = FlowMatching(Exact(), mean=100.0, std=20.0, steps=steps)
    noisy = 100 + 20 * torch.randn(1, 1, 6, 7)
    draws = sampler.sample(noisy.expand(2000, -1, -1, -1))[0]
    euler = math.prod(1 + Exact.slope(i / steps) / steps for i in range(steps))
    mean, std = 100 + GAIN * (noisy - 100), 20 * abs(euler)
    assert draws.std(0).square().mean().sqrt() == pytest.approx(std, rel=0.02, abs=1e-5)
    assert (draws.mean(0) - mean).abs().max() < 5 * std / math.sqrt(2000) + 1e-3
    if steps == 100:
        assert std == pytest.approx(20 * SPREAD, rel=0.02)
    if steps == 1:
        assert std == 0  # a single step is the posterior mean


def test_pairs_train_the_velocity_and_a_student(tmp_path):
    rng = np.random.default_rng(0)
    clean = (100 + 20 * rng.standard_normal((4, 32, 32))).astype(np.float32)
    noisy = clean + 10 * rng.standard_normal(clean.shape).astype(np.float32)
    sampler = FlowMatching(WithTime(LightUNet(3, 1, width=8, depth=1, unshuffle=1)), clean=clean, steps=2)
    before = sampler.velocity.backbone.stem[1].weight.detach().clone()
    run = train(noisy, sampler, UNet(depth=1, filters=4), L2(), tmp_path / "run", steps=2, refine_steps=1,
                batch_size=2, micro_batch=2, patch_size=16, device="cpu")  # fmt: skip
    assert not run.sampler.velocity.backbone.stem[1].weight.equal(before)
    torch.testing.assert_close(run.sampler.mean_of.flatten(), torch.tensor([noisy.mean()]))
    images = sampler.training_images(noisy[:, None])
    patch = torch.from_numpy(images[2, :, 4:20, 8:24])
    assert patch.equal(torch.from_numpy(np.stack([noisy[2], clean[2]])[:, 4:20, 8:24]))
    loss, draw = sampler.train().training_step(patch[None])
    assert loss.requires_grad and draw.shape == (1, 1, 16, 16)
    with pytest.raises(ValueError, match="one clean image for each"):
        sampler.training_images(noisy[:3, None])


def test_its_loss_is_the_conditional_variance_for_the_exact_velocity():
    sampler = FlowMatching(Exact(), mean=0.0, std=1.0, clean=np.zeros((1, 8, 8)), steps=1)
    clean = torch.randn(8000, 1, 4, 4)
    loss, _ = sampler.training_step(torch.cat([clean, clean + NOISE * torch.randn_like(clean)], 1).flip(1))
    t = torch.linspace(0.0005, 0.9995, 1000)
    # Var(x_1 - x_0 | x_t, noisy), averaged over t
    variance = 1 + SPREAD**2 - (t * SPREAD**2 - (1 - t)) ** 2 / ((1 - t) ** 2 + (t * SPREAD) ** 2)
    assert float(loss) == pytest.approx(float(variance.mean()), rel=0.03)


def test_it_keeps_the_rules_of_samplers():
    velocity = WithTime(LightUNet(3, 1, width=8, depth=1))
    check_sampler(FlowMatching(velocity, mean=100.0, std=20.0, steps=2))
    check_sampler(FlowMatching(velocity, steps=2), scale_equivariant=True)
    two = FlowMatching(WithTime(LightUNet(5, 2, width=8, depth=1)), channels=2, steps=2)
    check_sampler(two)


def test_without_clean_images_it_is_frozen():
    sampler = FlowMatching(WithTime(LightUNet(3, 1, width=8, depth=1)))
    assert not sampler.trainable
    with pytest.raises(NotImplementedError, match="pass clean"):
        sampler.training_step(torch.zeros(1, 1, 16, 16))


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"mean": 1.0}, {"mean": 0.0, "std": 0.0}, {"clean": 3.0}])
def test_wrong_arguments_are_one_line(wrong):
    with pytest.raises(ValueError, match="FlowMatching: got"):
        FlowMatching(Exact(), **wrong)
