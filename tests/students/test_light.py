import pytest
import torch

from distill import DirectDenoiser, load_denoiser, train
from distill.runs.checkpoint import save_denoiser
from losses import L2
from samplers import FunctionSampler
from students import LightUNet

TINY = dict(width=4, depth=2)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"depth": 4},
        {"growth": 2.0},
        {"growth": 0.5},
        {"unshuffle": 1},
        {"unshuffle": 3},
        {"separable": True},
    ],
)
@pytest.mark.parametrize("size", [(1, 1), (33, 18)])
def test_any_design_and_any_size(arguments, size):
    student = LightUNet(2, 2, **(TINY | arguments))
    assert DirectDenoiser(student, L2(), channels=2)(torch.rand(3, 2, *size)).shape == (3, 2, *size)
    assert LightUNet(2, 6, **(TINY | arguments))(torch.rand(1, 2, 96, 96)).shape == (1, 6, 96, 96)


def test_every_parameter_learns():
    student = LightUNet(**TINY)
    student(torch.rand(2, 1, 32, 32)).square().mean().backward()
    assert all(p.grad is not None for p in student.parameters())


def test_parameter_counts():
    count = lambda **k: sum(p.numel() for p in LightUNet(**k).parameters())
    assert count() == 640_228
    assert count(separable=True) < count() / 3


def test_neither_the_batch_nor_the_tile_matters():
    student = LightUNet(**TINY)
    whole = torch.rand(2, 1, 160, 160)
    answer = student(whole)
    assert student(whole[:1]).allclose(answer[:1], atol=1e-5)
    tile = student(whole[..., 24:136, 24:136])  # a multiple of 8 away: the same grid
    assert tile[..., 44:68, 44:68].allclose(answer[..., 68:92, 68:92], atol=1e-5)
    assert student.eval()(whole).equal(answer)


@pytest.mark.parametrize("wrong", [{"width": 0}, {"depth": 0}, {"unshuffle": 0}, {"growth": 0.0}])
def test_what_is_no_network_is_refused(wrong):
    with pytest.raises(ValueError, match="LightUNet: got .*" + next(iter(wrong))):
        LightUNet(**wrong)


def test_a_checkpoint_gives_it_back(tmp_path):
    denoiser = DirectDenoiser(LightUNet(1, 1, 6, 1, 1.2, 3, True), L2())
    save_denoiser(tmp_path / "student.safetensors", denoiser)
    x = torch.rand(1, 1, 20, 31)
    assert load_denoiser(tmp_path)(x).allclose(denoiser(x), atol=1e-5)


def test_trains(noisy, tmp_path):
    run = train(noisy, FunctionSampler(lambda x: x), LightUNet(**TINY), out=tmp_path / "run", steps=2,
                refine_steps=0, batch_size=2, micro_batch=1, patch_size=16)  # fmt: skip
    assert run.denoiser(torch.rand(1, 1, 9, 9)).isfinite().all()
