"""Frames are read one at a time, and large ones are computed in tiles."""

import numpy as np
import pytest
import torch

from distill import DirectDenoiser, UserError, cache_draws, psnr
from distill.evaluation.compare import compare
from distill.evaluation.pairs import paired
from distill.evaluation.stored_draws import StoredDraws
from distill.hardware import Hardware
from distill.images.stack import Stack
from distill.prediction.receptive_field import maps_in_tiles
from losses import L2, Quantiles
from samplers import FunctionSampler
from students import UNet

FRAMES = np.random.default_rng(0).normal(100, 10, (3, 200, 150)).astype(np.float32)


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch):
    monkeypatch.setattr("distill.prediction.tiles.LARGE", 100)
    monkeypatch.setattr("distill.prediction.tiles.SIDE", 64)


class Read:
    """An array that counts what is read of it."""

    def __init__(self, array):
        self.array, self.shape, self.dtype, self.ndim, self.most = array, array.shape, array.dtype, 3, 0

    def __getitem__(self, key):
        part = self.array[key]
        self.most = max(self.most, part.size)
        return part


def test_pairs_are_read_when_they_are_asked_for():
    noisy, clean = Read(FRAMES), Read(FRAMES + 1)
    pairs = paired(Stack(noisy, "TYX"), Stack(clean, "TYX"), frames=2)
    assert len(pairs) == 2 and max(noisy.most, clean.most) <= FRAMES[0].size
    for (a, b), i in zip(pairs, (0, 2), strict=True):
        assert a.equal(torch.from_numpy(FRAMES[i])[None]) and b.equal(torch.from_numpy(FRAMES[i])[None] + 1)
    one = paired(Stack(noisy, "TYX"), Stack(clean.array[:1], "TYX"))
    assert one[2][1].equal(pairs[0][1])
    with pytest.raises(UserError, match="clean: got frames"):
        paired(Stack(noisy, "TYX"), FRAMES[:2])


def test_a_student_in_tiles_is_the_student():
    denoiser = DirectDenoiser(UNet(1, 3, depth=1, filters=4), Quantiles()).eval()
    noisy = torch.from_numpy(FRAMES[:1])[None]
    with torch.no_grad():
        whole, tiled = denoiser.maps(noisy), maps_in_tiles(denoiser, noisy)
    assert list(whole) == list(tiled)
    for name, image in whole.items():
        torch.testing.assert_close(tiled[name], image)


def test_draws_in_tiles_are_whole_images_and_resume(tmp_path):
    """A sampler that needs no neighbours gives the same moments in tiles as in one piece."""
    shapes = []

    def jitter(noisy):
        shapes.append(tuple(noisy.shape[-2:]))
        return noisy + torch.randn_like(noisy)

    noisy, sampler = torch.from_numpy(FRAMES[:1])[None], FunctionSampler(jitter)
    mean, _, variance, _ = StoredDraws(tmp_path / "0", sampler, noisy, 20).take(20)
    assert max(height * width for height, width in shapes) < FRAMES[0].size
    assert mean.shape == noisy[0].shape and float((mean - noisy[0]).std()) == pytest.approx(
        20**-0.5, rel=0.05
    )
    assert float(variance.mean()) == pytest.approx(1, rel=0.05)
    StoredDraws(tmp_path / "1", sampler, noisy, 20).take(1)
    assert StoredDraws(tmp_path / "1", sampler, noisy, 20).take(20)[0].equal(mean)


def test_whole_comparison_and_a_larger_answer(tmp_path):
    """Draws of twice the size: tiles are put where they belong."""
    twice = FunctionSampler(lambda x: x.repeat_interleave(2, -1).repeat_interleave(2, -2), scale=2)
    noisy = torch.from_numpy(FRAMES[:1])[None]
    mean = StoredDraws(tmp_path / "0", twice, noisy, 2).take(2)[0]
    assert mean.equal(noisy[0].repeat_interleave(2, -1).repeat_interleave(2, -2))
    cached = cache_draws(twice, FRAMES, tmp_path / "cache", draws=2)
    assert cached.scale in (2, (2, 2), [2, 2])
    denoiser = DirectDenoiser(UNet(depth=1, filters=4), L2())
    jitter = FunctionSampler(lambda x: x + torch.randn_like(x))
    rows, images, _ = compare(jitter, denoiser, paired(FRAMES, FRAMES + 5), (1, 2), Hardware("cpu"))
    with torch.no_grad():
        expected = psnr(denoiser.eval()(noisy)[0], noisy[0] + 5)
    assert images["student"].shape == FRAMES[0].shape
    student = next(row for row in rows if row["image"] == "student")
    assert student["psnr_mean"] == pytest.approx(expected, abs=0.5)
