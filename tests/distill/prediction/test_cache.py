import json

import numpy as np
import pytest
import tifffile
import torch

from distill import UserError, cache_draws, train
from distill.__main__ import main
from losses import L1, L2
from samplers import CachedDraws, FunctionSampler

QUICK = dict(batch_size=2, micro_batch=2, patch_size=16, validate_every=2, device="cpu")


def jitter(noisy):
    return noisy + 10 * torch.randn_like(noisy)


def test_a_student_learns_from_cached_draws_alone(noisy, tiny_unet, tmp_path):
    calls = []

    def counted(x):
        calls.append(len(x))
        return jitter(x)

    cached = cache_draws(FunctionSampler(counted), noisy, tmp_path / "cache", draws=6)
    assert sum(calls) == 6 * len(noisy) and cached.free_draws == 6
    train(noisy, cached, tiny_unet, L2(), tmp_path / "run", steps=4, refine_steps=0, **QUICK)
    assert sum(calls) == 6 * len(noisy)


def test_what_is_recalled_are_the_draws_of_each_patch(noisy, tmp_path):
    cached = cache_draws(FunctionSampler(jitter), noisy, tmp_path, draws=40)
    patch = cached.training_images(noisy[:, None])[1, :, 8:24, 4:20]
    draws = cached.sample(torch.from_numpy(patch)[None], 40)
    assert draws.shape == (40, 1, 1, 16, 16)
    residual = draws[:, 0, 0] - torch.from_numpy(noisy[1, 8:24, 4:20]).float()
    assert abs(residual.mean()) < 0.5 and abs(residual.std() - 10) < 0.3
    few = cached.sample(torch.from_numpy(patch)[None], 3)
    assert all(any(torch.equal(one, d) for d in draws) for one in few)


def test_shares_keep_mean_and_std(noisy, tmp_path):
    torch.manual_seed(0)
    whole = cache_draws(FunctionSampler(jitter), noisy, tmp_path / "whole", draws=32)
    torch.manual_seed(0)
    kept = cache_draws(FunctionSampler(jitter), noisy, tmp_path / "kept", draws=32, keep=8)
    draws, shares = (
        c.sample(torch.from_numpy(c.training_images(noisy[:, None])[0, :, :, :])[None], c.free_draws)
        for c in (whole, kept)
    )
    assert shares.shape[0] == 8 and (shares.diff(dim=0) >= 0).all()
    assert (draws.mean(0) - shares.mean(0)).abs().max() < 0.1
    assert (draws.std(0, correction=0) - shares.std(0, correction=0)).abs().max() < 0.1


def test_a_stopped_cache_goes_on(noisy, tmp_path):
    calls = []

    def stops(x):
        calls.append(1)
        if len(calls) > 5:
            raise KeyboardInterrupt
        return jitter(x)

    with pytest.raises(KeyboardInterrupt):
        cache_draws(FunctionSampler(stops), noisy, tmp_path / "cache", draws=2)
    with pytest.raises(ValueError, match="not a finished cache"):
        CachedDraws(tmp_path / "cache")
    with pytest.raises(UserError, match="part of another cache"):
        cache_draws(FunctionSampler(jitter), noisy, tmp_path / "cache", draws=3)
    done = json.loads((tmp_path / "cache" / "unfinished.json").read_text())["done"]
    assert done == 2
    first = np.load(tmp_path / "cache" / "draws.npy")[:2]
    cached = cache_draws(FunctionSampler(jitter), noisy, tmp_path / "cache", draws=2)
    assert np.array_equal(first, cached._draws[:2]) and np.asarray(cached._draws).any(axis=(1, 2, 3, 4)).all()
    with pytest.raises(UserError, match="holds a finished cache"):
        cache_draws(FunctionSampler(jitter), noisy, tmp_path / "cache", draws=2)


def test_a_torn_state_starts_over(noisy, tmp_path):
    (tmp_path / "unfinished.json").write_text('{"work": {"name": "arr')
    cached = cache_draws(FunctionSampler(jitter), noisy, tmp_path, draws=2)
    assert np.asarray(cached._draws).any(axis=(1, 2, 3, 4)).all()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["draws.json", "draws.npy"]


def test_tiles_channels_and_wrong_images(noisy, tiny_unet, tmp_path):
    frames = np.stack([np.tile(noisy, (1, 3, 3)), 2 * np.tile(noisy, (1, 3, 3))], axis=1)  # (4, 2, 144, 120)
    cached = cache_draws(FunctionSampler(lambda x: x), frames, tmp_path / "cache", draws=2, tile=64, halo=64)
    seen = cached.training_images(frames)[3, :, :, :]
    assert seen.shape == (6, 144, 120)
    for k in range(2):
        np.testing.assert_allclose(seen[2 + 2 * k : 4 + 2 * k], frames[3], rtol=2e-3)
    with pytest.raises(UserError, match="not of these images"):
        train(noisy, cached, tiny_unet, L1(), tmp_path / "run", steps=1, **QUICK)
    with pytest.raises(ValueError, match="use the sampler itself"):
        cached.sample(torch.zeros(1, 2, 16, 16))
    assert not (tmp_path / "run").exists()


def test_from_the_command_line(noisy, tiny_unet, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tifffile.imwrite("noisy.tif", noisy, imagej=True, metadata={"axes": "TYX"})
    train("noisy.tif", FunctionSampler(jitter), tiny_unet, L2(), "teacher", steps=1, refine_steps=0, **QUICK)
    assert main(["cache", "teacher", "noisy.tif", "--out", "cache"]) == 2  # a function has no name
    small = [
        "--sampler",
        "HDN",
        "--sampler.levels",
        "2",
        "--sampler.latents",
        "2",
        "--sampler.filters",
        "4",
        "--sampler.blocks",
        "1",
    ]
    unet = ["--student", "UNet", "--student.depth", "2", "--student.filters", "4"]
    quick = [
        "--steps",
        "2",
        "--refine_steps",
        "0",
        "--patch_size",
        "16",
        "--batch_size",
        "2",
        "--device",
        "cpu",
    ]
    assert main(["train", "noisy.tif", "--out", "hdn", *small, *unet, *quick]) == 0
    assert main(["cache", "hdn", "noisy.tif", "--out", "cache", "--draws", "4"]) == 0
    assert "--sampler CachedDraws --sampler.path cache" in capsys.readouterr().out
    assert main(["train", "noisy.tif", "--sampler", "CachedDraws", "--sampler.path", "cache", "--loss", "L1",
                 "--out", "student", *unet, *quick]) == 0  # fmt: skip
    assert main(["predict", "student", "noisy.tif", "--out", "denoised.tif"]) == 0
    assert main(["predict", "student", "noisy.tif", "--out", "drawn.tif", "--draws", "2"]) == 2
    assert "use the sampler itself" in capsys.readouterr().err
