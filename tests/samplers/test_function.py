import pytest
import torch
from torch import nn

from samplers import FunctionSampler, posterior_mean

NOISY = torch.rand(2, 3, 8, 9) * 100


class Jitter(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 1, 1)

    def forward(self, noisy):
        assert not self.training and not torch.is_grad_enabled()
        out = self.conv(noisy)
        return out + torch.randn_like(out)


def many(noisy, count):
    return noisy + torch.randn(count, *noisy.shape)


def many_by_keyword(noisy, *, n):
    return many(noisy, n)


@pytest.mark.parametrize("fn", [lambda x: x + torch.randn_like(x), many, many_by_keyword])
def test_one_or_many_draws_per_call(fn):
    draws = FunctionSampler(fn).sample(NOISY, 4)
    assert draws.shape == (4, *NOISY.shape)
    assert not torch.equal(draws[0], draws[1])


def test_module_is_a_submodule_in_eval_mode_and_frozen():
    sampler = FunctionSampler(Jitter()).train()
    draws = sampler.sample(NOISY, 3)
    assert draws.shape == (3, 2, 1, 8, 9) and not draws.requires_grad
    assert sampler.training and sampler.fn.training
    assert "fn.conv.weight" in sampler.state_dict() and not sampler.trainable


def test_posterior_mean_of_a_function():
    torch.manual_seed(0)
    mean = posterior_mean(FunctionSampler(many), NOISY, 400)
    assert (mean - NOISY).abs().max() < 6 / 400**0.5


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: x[:, 0],
        lambda x: x[..., :4],
        lambda x: x[:1],
        lambda x: x.numpy(),
        lambda x, n: x,
        lambda x, n: many(x, n + 1),
    ],
)
def test_wrong_shape_is_one_clear_line(fn):
    with pytest.raises(ValueError, match=r"FunctionSampler: fn returned .* must return") as error:
        FunctionSampler(fn).sample(NOISY, 2)
    assert "\n" not in str(error.value)


def test_not_callable():
    with pytest.raises(ValueError, match="pass a function"):
        FunctionSampler("nlm")
