import json

import pytest
import safetensors.torch
import torch
from torch import nn

from distill import DirectDenoiser, UserError, load_denoiser, load_sampler
from distill.runs.checkpoint import save_denoiser, save_sampler
from distill.runs.rebuild import describe, rebuild
from distill.runs.tensors import load, save
from losses import L1, L2, LPIPS, Features, Huber, JointMode, MeanVariance, Quantiles, Tukey, WeightedSum
from samplers import HDN, FunctionSampler, GaussianNoise, LinearGaussianField
from students import UNet


class Forgetful(nn.Conv2d):
    """Does not keep its constructor argument."""

    def __init__(self, width: int) -> None:
        super().__init__(1, 1, width, padding="same")


def test_round_trip(tmp_path):
    tensors = {"a": torch.rand(3, 2), "b": torch.tensor(3), "c": torch.rand(2).bfloat16()}
    save(tmp_path / "x.safetensors", tensors, {"step": 3, "list": [1.5, None]})
    loaded, header = load(tmp_path / "x.safetensors")
    assert header == {"step": 3, "list": [1.5, None]}
    assert all(loaded[k].equal(v) and loaded[k].dtype == v.dtype for k, v in tensors.items())
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    save(path, {"a": torch.zeros(1)}, {"version": 1})
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(UserError, match="disk full"):
        save(path, {"a": torch.ones(1)}, {"version": 2})
    assert load(path)[1] == {"version": 1}


def test_damage_is_told_from_truth(tmp_path):
    path = tmp_path / "x.safetensors"
    save(path, {"a": torch.zeros(100)}, {})
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + b"\x01")
    with pytest.raises(UserError, match="checksum"):
        load(path)
    path.write_bytes(whole[:-50])
    with pytest.raises(UserError, match="damaged"):
        load(path)
    safetensors.torch.save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(UserError, match="not one that distill wrote"):
        load(path)
    with pytest.raises(UserError, match="no such file"):
        load(tmp_path / "y.safetensors")


@pytest.mark.parametrize(
    "module",
    [
        HDN(GaussianNoise(gain=2.0, offset=5.0), levels=2, filters=4, blocks=1, active_levels=[2]),
        UNet(2, 3, depth=2, filters=4, shared_convs=True),
        Huber(0.3),
        Tukey(c=1.5, min_draws=16),
        JointMode(c=1.5, window=4),
        Quantiles((0.1, 0.5, 0.9)),
        MeanVariance(),
        Features("resnet18"),
        WeightedSum([L1(), WeightedSum([Huber(0.2), LPIPS()], [1, 2])], [1, 0.1]),
        LinearGaussianField(noise_std=7.0),
    ],
)
def test_modules_are_rebuilt_from_their_description(module):
    description = json.loads(json.dumps(describe(module)))
    rebuilt = rebuild(description)
    assert type(rebuilt) is type(module)
    assert describe(rebuilt) == description
    rebuilt.load_state_dict(module.state_dict())


def test_a_sum_with_a_loss_that_cannot_be_described_cannot_either():
    class Strange(L2):
        def __init__(self, exponent: float) -> None:
            super().__init__()

    assert describe(WeightedSum([L1(), Strange(2.0)])) is None


def test_what_cannot_be_described_is_loaded_with_an_object(tmp_path):
    backbone = Forgetful(3)
    save_denoiser(tmp_path / "student.safetensors", DirectDenoiser(backbone, L2()))
    save_sampler(tmp_path / "sampler.safetensors", FunctionSampler(lambda x: x))
    with pytest.raises(UserError, match="pass backbone="):
        load_denoiser(tmp_path)
    with pytest.raises(UserError, match="pass sampler="):
        load_sampler(tmp_path)
    assert load_denoiser(tmp_path, Forgetful(3)).backbone.weight.equal(backbone.weight)


def test_a_denoiser_keeps_its_standardization_and_loss(tmp_path):
    denoiser = DirectDenoiser(UNet(depth=1, filters=2), L1())
    denoiser.prepare(torch.full((1, 1, 1), 50.0), torch.full((1, 1, 1), 3.0))
    save_denoiser(tmp_path / "student.safetensors", denoiser)
    loaded = load_denoiser(tmp_path / "student.safetensors")
    x = 50 + torch.rand(1, 1, 9, 9)
    assert loaded(x).equal(denoiser(x)) and isinstance(loaded.loss, L1)


def test_weights_of_another_architecture_are_one_line(tmp_path):
    path = tmp_path / "student.safetensors"
    save_denoiser(path, DirectDenoiser(UNet(depth=2, filters=4), L2()))
    stored, header = load(path)
    header["backbone"]["arguments"]["filters"] = 6
    save(path, stored, header)
    with pytest.raises(UserError, match=r"another architecture than its DirectDenoiser \(size mismatch"):
        load_denoiser(tmp_path)
