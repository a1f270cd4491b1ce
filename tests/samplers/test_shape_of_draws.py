import pytest
import torch
from torch import nn

from samplers import (
    DiffusionSampler,
    Ensemble,
    FunctionSampler,
    MonteCarloDropout,
    OnePassSampler,
    posterior_mean,
    posterior_median,
    posterior_std,
)
from samplers.base import draw_statistics
from samplers.testing import check_sampler
from students.upscale import Nearest

PARTS = torch.tensor([0.5, 0.3, 0.2])[:, None, None]


def unmixed(noisy):
    """One image into three parts of it, each with noise of its own."""
    return PARTS * noisy + torch.randn(len(noisy), 3, *noisy.shape[2:])


def enlarged(noisy):
    large = Nearest((1, 2))(noisy)
    return large + torch.randn_like(large)


UNMIXING = FunctionSampler(unmixed, out_channels=3, out_names=("a", "b", "c"))
ENLARGING = FunctionSampler(enlarged, scale=(1, 2))


@pytest.mark.parametrize("sampler", [UNMIXING, ENLARGING], ids=["unmixing", "enlarging"])
def test_declared_shapes_keep_the_rules(sampler):
    check_sampler(sampler)


@pytest.mark.parametrize(
    "declared",
    [{}, {"out_channels": 2}, {"out_channels": 3, "scale": 2}, {"out_channels": 3, "scale": (1, 2)}],
)
def test_a_sampler_that_gives_another_shape_than_it_says_is_told(declared):
    with pytest.raises(ValueError, match=r"shape|must return a tensor"):
        check_sampler(FunctionSampler(unmixed, **declared))


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"out_channels": 0}, "out_channels: got 0"),
        ({"scale": 0.5}, "scale: got 0.5"),
        ({"out_channels": 2, "out_names": ["a"]}, r"out_names: got \['a'\]"),
    ],
)
def test_what_cannot_be_declared_is_one_line(wrong, told):
    with pytest.raises(ValueError, match=told):
        FunctionSampler(unmixed, **wrong)


def test_consensus_images_have_the_shape_of_a_draw():
    noisy = torch.rand(2, 1, 8, 9) * 100
    for statistic in (posterior_mean, posterior_median, posterior_std):
        assert statistic(UNMIXING, noisy, 5).shape == (2, 3, 8, 9)
        assert statistic(ENLARGING, noisy, 5).shape == (2, 1, 8, 18)


def test_statistics_of_draws_are_those_of_all_of_them():
    batches = [10 + 3 * torch.randn(4, 1, 16, 16) for _ in range(3)]
    exact = FunctionSampler(lambda noisy: PARTS * noisy, out_channels=3)
    mean, std = draw_statistics(exact, batches)
    pixels = torch.cat(batches).double()
    assert mean.shape == std.shape == (3, 1, 1)
    assert torch.allclose(mean, (pixels.mean() * PARTS).float(), rtol=1e-6)
    assert torch.allclose(std, (pixels.std(correction=0) * PARTS).float(), rtol=1e-6)


def test_a_constant_channel_leaves_nothing_to_learn():
    flat = FunctionSampler(lambda noisy: torch.cat([noisy, 0 * noisy + 5], dim=1), out_channels=2)
    with pytest.raises(ValueError, match="channel 1 of its draws is 5 everywhere"):
        draw_statistics(flat, [torch.rand(2, 1, 8, 8)])


class Doubled(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(Nearest(2), nn.Dropout(0.5))

    def forward(self, noisy, physics=None):
        return self.layers(noisy)


class TwoMaps(nn.Module):
    out_channels, scale, out_names = 1, (2, 2), ("nuclei",)

    def maps(self, noisy):
        return {name: torch.randn(len(noisy), 1, *(2 * n for n in noisy.shape[2:])) for name in "ab"}


@pytest.mark.parametrize(
    "sampler",
    [
        Ensemble([Doubled(), Doubled()], scale=2),
        MonteCarloDropout(Doubled(), scale=2),
        DiffusionSampler(Doubled(), black=0, white=1, physics=nn.Identity(), scale=2),
        OnePassSampler(TwoMaps()),
    ],
    ids=lambda sampler: type(sampler).__name__,
)
def test_adapters_of_networks_that_enlarge(sampler):
    noisy = torch.rand(2, 1, 6, 7)
    assert sampler.sample(noisy, 3).shape == (3, *sampler.draw_shape(noisy.shape)) == (3, 2, 1, 12, 14)
