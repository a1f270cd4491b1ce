import inspect
import json

import numpy as np
import pytest
import torch

from samplers import GaussianNoise, HistogramNoise


def pairs(seed: int = 0, n: int = 400_000) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    signal = rng.uniform(50, 200, n)
    return signal, 2 * rng.poisson(signal / 2) + rng.normal(0, 6, n)


@pytest.fixture(scope="module")
def model() -> HistogramNoise:
    return HistogramNoise.fit(*pairs(), bins=100)


def slope(model, noisy: float, signal: float) -> float:
    s = torch.tensor([signal], requires_grad=True)
    return float(torch.autograd.grad(model.log_likelihood(torch.tensor([noisy]), s).sum(), s)[0])


@pytest.mark.parametrize("signal", [-300.0, 20.0, 51.0, 123.4, 199.0, 300.0, 301.0, 900.0])
def test_is_a_density(model, signal):
    x = torch.linspace(signal - 600, signal + 600, 240_001)
    density = model.log_likelihood(x, torch.tensor([signal])).double().exp() * 0.005
    assert abs(density.sum() - 1) < 1e-3
    if 60 < signal < 190:
        mean = (density * x).sum()
        assert abs(mean - signal) < 0.5
        assert abs((density * (x - mean) ** 2).sum() / (2 * signal + 36) - 1) < 0.06


def test_rows_are_interpolated_between_bin_centres():
    table = np.eye(4) + np.eye(4, k=1)
    model = HistogramNoise(table.tolist(), 0, 8)  # bins of 2 counts, centres 1, 3, 5, 7
    p = model.log_likelihood(torch.tensor(1.0), torch.tensor([1.0, 2.0, 3.0])).exp()
    assert torch.allclose(p[:2], torch.tensor([0.25, 0.125]), rtol=0.02)
    assert p[2] < 1e-3  # the cell is empty: outliers only


def test_likelihood_of_held_out_pairs_is_near_the_true_one(model):
    signal, noisy = (torch.from_numpy(v).float() for v in pairs(seed=1))
    truth = GaussianNoise(gain=2.0, offset=36.0).log_likelihood(noisy, signal).mean()
    assert abs(model.log_likelihood(noisy, signal).mean() - truth) < 0.02


@pytest.mark.parametrize("distance", [-1e5, -3000.0, 3000.0, 1e5])
def test_gradient_pulls_back_from_far_away(model, distance):
    for level in (-50.0, 60.0, 120.0, 190.0, 5000.0):
        for noisy, signal in ((level + distance, level), (level, level + distance)):
            assert slope(model, noisy, signal) * (noisy - signal) > 0
            assert abs(slope(model, noisy, signal)) > 0.1


def test_gradient_within_the_data_points_to_the_observation(model):
    for noisy, signal in ((120.0, 90.0), (120.0, 150.0), (80.0, 110.0), (290.0, 201.0)):
        assert slope(model, noisy, signal) * (noisy - signal) > 0


def test_no_jump_at_the_edge(model):
    s = torch.linspace(model.low - 10, model.low + 20, 3001)
    value = model.log_likelihood(torch.tensor(model.low + 30.0), s)
    assert value.isfinite().all() and value.diff().abs().max() < 0.05


def test_samples_follow_the_density(model):
    torch.manual_seed(0)
    for level in (20.0, 100.0, 600.0):
        signal = torch.full((100_000,), level)
        noisy = model.sample(signal)
        x = torch.linspace(level - 500, level + 500, 100_001)
        log_density = model.log_likelihood(x, signal[:1]).double()
        entropy = -(log_density.exp() * log_density).sum() * 0.01
        assert abs(-model.log_likelihood(noisy, signal).mean() - entropy) < 0.02


def test_rebuilding_precision_and_files(model, tmp_path):
    noisy, signal = torch.rand(2, 1, 4, 5) * 300, torch.rand(3, 2, 1, 4, 5) * 300
    full = model.log_likelihood(noisy, signal)
    assert full.shape == signal.shape and full.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(full, model.log_likelihood(noisy, signal))
    arguments = {name: getattr(model, name) for name in inspect.signature(HistogramNoise).parameters}
    again = HistogramNoise(**json.loads(json.dumps(arguments)))
    model.write(tmp_path / "noise.npz")
    for other in (again, HistogramNoise.read(tmp_path / "noise.npz")):
        assert torch.equal(full, other.log_likelihood(noisy, signal))
    assert not list(model.parameters()) and not model.state_dict()


def test_empty_rows_come_from_their_neighbours():
    signal, noisy = pairs()
    gap = (signal < 100) | (signal > 130)
    table = np.histogram2d(signal[gap], noisy[gap], 100, [[0, 300]] * 2)[0]
    x, s = torch.linspace(-200, 500, 70_001), torch.tensor([115.0])
    density = HistogramNoise(table, 0, 300).log_likelihood(x, s).double().exp() * 0.01
    mean = (density * x).sum()
    assert abs(mean - 115) < 3 and abs((density * (x - mean) ** 2).sum() / 266 - 1) < 0.15


def test_integers_have_bins_of_whole_counts():
    signal, noisy = pairs(n=50_000)
    model = HistogramNoise.fit(signal, noisy.round().clip(0, 255).astype(np.uint8))
    assert (model.high - model.low) / len(model.table) == 1 and model.low % 1 == 0.5
    assert HistogramNoise.fit(signal, noisy.astype(np.uint16), 64).low % 1 == 0.5


@pytest.mark.parametrize(
    "arguments",
    [{"table": [[1, 2]], "low": 0, "high": 1},
     {"table": [[0, 0], [0, 0]], "low": 0, "high": 1}, {"table": [[1, -1], [0, 1]], "low": 0, "high": 1},
     {"table": [[1, 0], [0, 1]], "low": 1, "high": 1}],
)  # fmt: skip
def test_bad_arguments(arguments):
    with pytest.raises(ValueError, match="HistogramNoise: "):
        HistogramNoise(**arguments)


def test_bad_files_and_data(tmp_path):
    np.savez(tmp_path / "keys.npz", histogram=np.eye(2))
    (tmp_path / "text.npz").write_text("no")
    for name in ("keys.npz", "text.npz", "absent.npz"):
        with pytest.raises(ValueError, match=name):
            HistogramNoise.read(tmp_path / name)
    with pytest.raises(ValueError, match=r"HistogramNoise\.fit: "):
        HistogramNoise.fit(np.ones(500), np.random.rand(500))
