"""benchmarks/pretrain.py, which made the shipped weights, still runs and writes what the networks load."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import samplers.stabilized
import students.stabilized
from samplers import StabilizedSampler
from students import StabilizedUNet
from students.stabilized import LAGS

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("pretrain")


@pytest.mark.parametrize(
    ("which", "home", "file"),
    [
        ("mean", students.stabilized, "WEIGHTS"),
        ("correlated", students.stabilized, "CORRELATED"),
        ("spread", samplers.stabilized, "WEIGHTS"),
        ("correlated_spread", samplers.stabilized, "CORRELATED"),
    ],
)
def test_every_stage_writes_weights_that_the_network_loads(which, home, file, script, tmp_path, monkeypatch):
    out = tmp_path / "weights.safetensors"
    command = ["pretrain.py", which, "--share", "0.0002", "--fields", "2", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", command)
    script.main()
    written, shipped = load_file(out), load_file(getattr(home, file))
    assert {k: (v.shape, v.dtype) for k, v in written.items()} == {
        k: (v.shape, v.dtype) for k, v in shipped.items()
    }
    monkeypatch.setattr(home, file, out)
    sampler = StabilizedSampler()
    sampler.mean.correlated = file == "CORRELATED"
    sampler.load_pretrained()
    loaded = (sampler.spread if "spread" in which else sampler.mean).state_dict()
    assert all(loaded[k].equal(v.float()) for k, v in written.items())


def test_its_stabilization_is_the_students(script):
    """z of one gain and offset, and the answer to z of the whole forward pass."""
    gain, offset = torch.full((1, 1, 1), 2.0), torch.full((1, 1, 1), -150.0)
    student = StabilizedUNet()
    student.load_pretrained()
    counts = 70 + 20 * torch.rand(2, 1, 32, 32)  # some of them below the black level
    student.prepare(counts, torch.zeros(1, 1, 1), torch.ones(1, 1, 1), gain, offset)
    z = torch.from_numpy(script.stabilize(counts.double().numpy() / 2 - 150 / 4)).float()
    with torch.no_grad():
        d = z + student.maps(z, student.level)[:, :, 0]
        y = d.clamp(min=0).square() / 4 - 3 / 8
        torch.testing.assert_close(student(counts), 2 * y + 75, rtol=1e-4, atol=1e-3)


def test_fields_and_noisy_patches_are_those_of_the_seed(script):
    fields = script.bank(2, size=96, seed=1)
    assert fields.dtype == np.float16 and fields.min() == 0 and fields.max() == 1
    assert np.array_equal(script.bank(1, size=96, seed=1), fields[:1])
    stage = script.Stage(1, 40, 32, 1e-3)
    z, target, level, correlation = script.batch(np.random.default_rng(0), fields, stage, script.observe)
    assert z.shape == target.shape == (40, 1, 32, 32) and level.shape == (40, 1, 1, 1)
    assert correlation.shape == (40, 1, len(LAGS)) and not correlation.any()  # white
    noise = (z - target)[target > 8]  # where z is stable, its noise has variance 1
    assert 0.8 < noise.std() < 1.1


@pytest.mark.parametrize("seed", range(12))
def test_the_correlation_that_it_tells_is_that_of_the_noise(seed, script):
    noise, told = script.correlated_noise(np.random.default_rng(seed), (256, 256))
    assert (
        noise.shape == (256, 256)
        and noise.std() == pytest.approx(1)
        and told[0] == pytest.approx(1, abs=0.02)
    )
    for (y, x), correlation in zip(LAGS, told, strict=True):
        pairs = noise[y:, x:] * noise[: 256 - y, : 256 - x]
        assert pairs.mean() == pytest.approx(correlation, abs=0.1)
