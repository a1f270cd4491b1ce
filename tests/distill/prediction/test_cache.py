import json
import shutil

import numpy as np
import pytest
import tifffile
import torch

from distill import UserError, cache_draws, train
from distill.__main__ import main
from distill.files import Unfinished
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
    with pytest.raises(UserError, match=r"part of another cache \(different draws\)"):
        cache_draws(FunctionSampler(jitter), noisy, tmp_path / "cache", draws=3)
    assert len(done_frames(tmp_path / "cache")) == 2
    cached = cache_draws(FunctionSampler(jitter), noisy, tmp_path / "cache", draws=2)
    whole = cache_draws(FunctionSampler(jitter), noisy, tmp_path / "whole", draws=2)
    assert len(cached._draws) == 4 and not np.array_equal(whole._draws[0], whole._draws[1])
    assert contents(tmp_path / "cache") == contents(tmp_path / "whole")
    with pytest.raises(UserError, match="holds a finished cache of a sampler that may have been another fun"):
        cache_draws(FunctionSampler(jitter), noisy, tmp_path / "cache", draws=2)
    other = cache_draws(FunctionSampler(jitter), noisy, tmp_path / "other", draws=2, seed=1)
    assert not np.array_equal(other._draws, whole._draws)


def test_progress_is_saved_every_few_seconds_and_a_killed_cache_repeats_the_rest(tmp_path, monkeypatch):
    images = np.random.default_rng(0).normal(100, 10, (30, 8, 8)).astype(np.float32)
    calls, saved, save = [], [], Unfinished.save

    def kills(x):
        calls.append(1)
        if len(calls) == 12:
            shutil.copytree(tmp_path / "cache", tmp_path / "killed")  # what a kill would leave
        return jitter(x)

    monkeypatch.setattr(Unfinished, "save", lambda self, done: saved.append(len(done)) or save(self, done))
    cache_draws(FunctionSampler(kills), images, tmp_path / "cache", draws=1)
    assert saved[:2] == [0, 1] and saved[-1] == 30 and len(saved) <= 6
    assert 1 <= len(done_frames(tmp_path / "killed")) < 11
    cache_draws(FunctionSampler(jitter), images, tmp_path / "killed", draws=1)
    assert contents(tmp_path / "killed") == contents(tmp_path / "cache")


def test_a_finished_cache_of_the_same_draws_is_used_again(noisy, tiny_hdn, tmp_path, monkeypatch):
    torch.manual_seed(0)
    mean, std = torch.full((1, 1, 1), 200.0), torch.full((1, 1, 1), 40.0)
    tiny_hdn.prepare(torch.from_numpy(noisy)[:, None], mean, std)
    cache_draws(tiny_hdn, noisy, tmp_path, draws=2, seed=3)
    before = contents(tmp_path)
    monkeypatch.setattr(type(tiny_hdn), "draws", pytest.fail)
    again = cache_draws(tiny_hdn, noisy, tmp_path, draws=2, seed=3)
    assert again.free_draws == 2 and contents(tmp_path) == before
    for images, options, differ in (
        (noisy, {"draws": 3, "seed": 3}, "draws"), (noisy, {"draws": 2}, "seed"),
        (noisy + 1, {"draws": 2, "seed": 3}, "images, mean"),
        (noisy, {"draws": 2, "seed": 3, "keep": 1}, "keep"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=rf"holds a finished cache of other draws \(different {differ}\)"):
            cache_draws(tiny_hdn, images, tmp_path, **options)
    torch.nn.init.normal_(next(tiny_hdn.parameters()))
    with pytest.raises(UserError, match=r"finished cache of other draws \(different sampler\); pass another"):
        cache_draws(tiny_hdn, noisy, tmp_path, draws=2, seed=3)
    assert contents(tmp_path) == before
    (tmp_path / "draws.json").write_text("{}")
    with pytest.raises(UserError, match=r"holds a damaged cache .*; delete it first"):
        cache_draws(tiny_hdn, noisy, tmp_path, draws=2, seed=3)


def done_frames(folder):
    return json.loads(json.loads((folder / "unfinished.json").read_text())["state"])["done"]


def contents(folder):
    return sorted((path.name, path.read_bytes()) for path in folder.iterdir())


def test_draws_of_two_samplers_are_never_mixed(noisy, tiny_hdn, tmp_path, monkeypatch):
    tiny_hdn.prepare(
        torch.from_numpy(noisy)[:, None], torch.full((1, 1, 1), 200.0), torch.full((1, 1, 1), 40.0)
    )
    stop = lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
    monkeypatch.setattr("distill.prediction.cache.checksum", stop)
    with pytest.raises(KeyboardInterrupt):
        cache_draws(tiny_hdn, noisy, tmp_path, draws=2)
    torch.nn.init.normal_(next(tiny_hdn.parameters()))
    with pytest.raises(UserError, match=r"part of another cache \(different sampler\)"):
        cache_draws(tiny_hdn, noisy, tmp_path, draws=2)


@pytest.mark.parametrize("name", ["draws.npy", "draws.json"])
def test_every_flipped_bit_is_found(noisy, tiny_unet, tmp_path, name):
    cache_draws(FunctionSampler(jitter), noisy, tmp_path / "cache", draws=2)
    path = tmp_path / "cache" / name
    intact, rng = path.read_bytes(), np.random.default_rng(0)
    for at, bit in zip(rng.integers(len(intact), size=100), rng.integers(8, size=100), strict=True):
        flipped = bytearray(intact)
        flipped[at] ^= 1 << bit
        path.write_bytes(flipped)
        with pytest.raises(ValueError, match=r"CachedDraws: .*(damaged|not a finished cache)"):
            read_all(noisy, tmp_path / "cache")
    path.write_bytes(intact)
    read_all(noisy, tmp_path / "cache")


def read_all(noisy, folder):
    pixels = CachedDraws(folder).training_images(noisy[:, None])
    return [pixels[i, :, 8:24, 8:24] for i in range(len(noisy))]


def test_damage_that_training_meets_is_one_line(noisy, tiny_unet, tmp_path):
    cached = cache_draws(FunctionSampler(jitter), noisy, tmp_path / "cache", draws=2)
    with open(tmp_path / "cache" / "draws.npy", "r+b") as file:
        file.seek(-1, 2)
        file.write(b"?")
    with pytest.raises(UserError, match="the draws of frame 3 are damaged"):
        train(noisy, cached, tiny_unet, L2(), tmp_path / "run", steps=9, val_fraction=0, **QUICK)


def test_a_cache_has_the_orientation_of_its_sampler(noisy, tmp_path):
    for isotropic in (True, False):
        sampler = FunctionSampler(jitter)
        sampler.isotropic = isotropic
        cached = cache_draws(sampler, noisy, tmp_path / str(isotropic), draws=1)
        assert cached.isotropic is CachedDraws(tmp_path / str(isotropic)).isotropic is isotropic


def test_draws_that_are_no_numbers_are_refused(noisy, tmp_path):
    with pytest.raises(UserError, match="draws of frame 0 are NaN"):
        cache_draws(FunctionSampler(lambda x: x * torch.nan), noisy, tmp_path, draws=1)


def test_a_torn_state_starts_over_and_a_file_of_others_is_kept(noisy, tmp_path):
    (tmp_path / "draws.npy").write_bytes(b"half")
    with pytest.raises(UserError, match="does not belong to an unfinished cache"):
        cache_draws(FunctionSampler(jitter), noisy, tmp_path, draws=2)
    assert (tmp_path / "draws.npy").read_bytes() == b"half"
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
