import inspect
import json
import math

import numpy as np
import pytest
import torch
from scipy.stats import norm

from samplers import GaussianMixtureNoise, GaussianNoise

WEIGHT = [[-3.0, 2.0], [5.0, 1.0], [2.0, 3.0], [3.0, 4.0], [0.0, 0.5], [-1.0, 0.3]]
MODELS = [
    lambda **kw: GaussianNoise(3.0, **kw),
    lambda **kw: GaussianNoise(gain=1.5, offset=1.0, **kw),
    lambda **kw: GaussianMixtureNoise(WEIGHT, 0, 200, 1.0, **kw),
]


@pytest.mark.parametrize("build", MODELS)
@pytest.mark.parametrize("signal", [-5.0, 0.3, 60.0, 254.0, 270.0])
def test_probabilities_of_all_values_sum_to_one(build, signal):
    model = build(step=1, clip=(0, 255))
    p = model.log_likelihood(torch.arange(256), torch.tensor([signal])).double().exp()
    assert abs(p.sum() - 1) < 1e-6
    unclipped = build(step=2).log_likelihood(torch.arange(-2000, 2001, 2), torch.tensor([signal]))
    assert abs(unclipped.double().exp().sum() - 1) < 1e-5


@pytest.mark.parametrize("std", [0.1, 1.0, 30.0, 1e4])
def test_exact_values_deep_in_both_tails(std):
    model = GaussianNoise(std, step=1)
    for z in (0.0, -0.4, 3.0, -7.0, 12.0, -35.0):
        x = round(z * std)
        a, b = sorted((abs(x) - 0.5, abs(x) + 0.5))
        exact = norm.logsf(a / std) + math.log(-math.expm1(norm.logsf(b / std) - norm.logsf(a / std)))
        value = model.log_likelihood(torch.tensor(float(x)), torch.tensor(0.0))
        assert math.isclose(value, exact, rel_tol=1e-5, abs_tol=1e-5)


@pytest.mark.parametrize("build", MODELS)
@pytest.mark.parametrize("clip", [None, (0, 255)])
def test_gradient_is_alive_at_1e5_counts(build, clip):
    for noisy, level in ((0.0, 1e5), (100.0, 1e5), (255.0, -1e5), (100.0, -1e5), (100.0, 110.0)):
        signal = torch.tensor([level], requires_grad=True)
        value = build(step=1, clip=clip).log_likelihood(torch.tensor([noisy]), signal)
        (slope,) = torch.autograd.grad(value.sum(), signal)
        assert value.isfinite().all() and slope.isfinite().all()
        assert slope * (noisy - level) > 0 and slope.abs() > 1e-4
        assert slope.abs() < 1e7  # 1e5 counts over the least variance, 0.03


def test_gradient_is_that_of_the_density_where_bins_are_fine():
    x, s = torch.tensor([103.0, 97.0]), torch.tensor([100.0, 100.0], requires_grad=True)
    for model in (GaussianNoise(1000.0), GaussianNoise(1000.0, step=1)):
        (slope,) = torch.autograd.grad(model.log_likelihood(x, s).sum(), s)
        assert torch.allclose(slope, (x - s.detach()) / 1e6, rtol=1e-4)


@pytest.mark.parametrize("build", MODELS)
def test_rebuilt_from_json_and_sampled(build):
    model = build(step=1, clip=(0, 255))
    arguments = {name: getattr(model, name) for name in inspect.signature(type(model)).parameters}
    again = type(model)(**json.loads(json.dumps(arguments)))
    noisy = model.sample(torch.linspace(-20, 300, 20_000))
    assert set(noisy.unique().tolist()) <= set(range(256)) and noisy.dtype == torch.float32
    signal = torch.full_like(noisy, 80.0)
    assert torch.equal(model.log_likelihood(noisy, signal), again.log_likelihood(noisy, signal))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model.log_likelihood(noisy, signal).dtype == torch.float32


@pytest.mark.parametrize("build", MODELS)
def test_files_keep_step_and_clip(build, tmp_path):
    model = build(step=1, clip=(0, 255))
    model.write(tmp_path / "noise.npz")
    again = type(model).read(tmp_path / "noise.npz")
    assert again.step == 1 and again.clip == [0, 255]
    x, s = torch.arange(50), torch.full((50,), 20.0)
    assert torch.equal(model.log_likelihood(x, s), again.log_likelihood(x, s))


def test_clipped_data_are_likelier_than_under_a_density():
    rng = np.random.default_rng(0)
    signal = rng.uniform(0, 3, 20_000)
    noisy = (signal + rng.normal(0, 2, 20_000)).round().clip(0, 255)
    x, s = torch.from_numpy(noisy).float(), torch.from_numpy(signal).float()
    plain, exact = GaussianNoise(2.0), GaussianNoise(2.0, step=1, clip=(0, 255))
    assert exact.log_likelihood(x, s).mean() > plain.log_likelihood(x, s).mean() + 0.1


@pytest.mark.parametrize(
    "arguments", [{"step": 0}, {"clip": (0, 255)}, {"step": 1, "clip": (5, 5)}, {"step": -1}]
)
def test_bad_arguments(arguments):
    for build in MODELS:
        with pytest.raises(ValueError, match="got step="):
            build(**arguments)


@pytest.mark.parametrize("build", MODELS)
@pytest.mark.parametrize("step", [None, 1])
def test_noisy_may_have_more_dimensions_than_signal(build, step):
    x, s = torch.rand(7, 1) * 90, torch.rand(5) * 90
    full = build(step=step).log_likelihood(x, s)
    assert full.shape == (7, 5)
    assert torch.equal(full, build(step=step).log_likelihood(x.expand(7, 5), s.expand(7, 5)))
