import numpy as np
import pytest
import torch
from torch import nn

from samplers import FunctionSampler, NumpySampler, posterior_mean
from samplers.testing import check_sampler

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


def shrunk(noisy, rng):
    """Pixels from N(100, 20^2) in noise of 10: their exact posterior."""
    assert noisy.dtype == np.float32 and isinstance(noisy, np.ndarray)
    noisy -= 100  # which the caller must not see
    return 100 + 0.8 * noisy + 80**0.5 * rng.standard_normal(noisy.shape)


def test_a_function_of_numpy_draws_from_its_law():
    noisy = 100 + 20 * torch.randn(2, 1, 6, 7)
    sampler = NumpySampler(shrunk)
    draws = sampler.sample(noisy, 3000)
    assert draws.dtype == torch.float32 and not sampler.trainable
    assert (draws.mean(0) - (100 + 0.8 * (noisy - 100))).abs().max() < 5 * (80 / 3000) ** 0.5
    assert float(draws.var(0).mean()) == pytest.approx(80, rel=0.05)
    check_sampler(sampler)


def test_a_function_of_numpy_may_unmix_and_enlarge():
    def parts(noisy, rng):
        large = noisy.repeat(2, axis=2).repeat(2, axis=3)
        return np.concatenate([large / 3, 2 * large / 3], axis=1) + rng.standard_normal((1, 1, 1, 1))

    check_sampler(NumpySampler(parts, out_channels=2, scale=2, out_names=("a", "b")))


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (lambda noisy, rng: noisy[0], r"returned float32 \(1, 8, 8\).*\(2, 1, 8, 8\)"),
        (lambda noisy, rng: torch.from_numpy(noisy), "returned Tensor"),
        (lambda noisy, rng: noisy + 1j, "returned complex64"),
        (3, "pass a function of"),
    ],
)
def test_what_numpy_cannot_have_drawn_is_one_line(fn, message):
    with pytest.raises(ValueError, match=message):
        NumpySampler(fn).sample(torch.zeros(2, 1, 8, 8))
